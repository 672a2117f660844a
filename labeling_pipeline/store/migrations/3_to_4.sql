-- A file is told from a changed one also by what its storage calls the content.
ALTER TABLE dataset_files ADD COLUMN etag VARCHAR;
