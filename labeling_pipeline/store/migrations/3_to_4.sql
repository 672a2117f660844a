-- A file is told from a changed one also by what its storage calls the content.
ALTER TABLE dataset_files ADD COLUMN etag VARCHAR;

-- Why a file has no content, until it can be read.
ALTER TABLE dataset_files ADD COLUMN unread_reason VARCHAR;
ALTER TABLE dataset_files ADD COLUMN unread_detail VARCHAR;

-- Images are measured on a smaller picture. Those without a size are from before, and measured anew.
ALTER TABLE images ADD COLUMN size_bytes BIGINT;
ALTER TABLE images ADD COLUMN entropy DOUBLE;
ALTER TABLE images ADD COLUMN flags VARCHAR[];

-- Which copy stands for all is found in one pass over the files, for there may be a million.
DROP VIEW class_images;
DROP VIEW files;

CREATE VIEW files AS
WITH copied AS (
    SELECT image_id, min(path) AS first_path FROM dataset_files
    WHERE skipped_reason IS NULL AND image_id IS NOT NULL
    GROUP BY image_id HAVING count(*) > 1
)
SELECT
    f.path, f.class, f.image_id, f.size_bytes, f.mtime_ns, i.image_number,
    CASE
        WHEN f.skipped_reason IS NOT NULL THEN 'skipped'
        WHEN f.image_id IS NULL AND f.unread_reason IS NOT NULL THEN 'rejected'
        WHEN c.first_path <> f.path THEN 'rejected'
        ELSE coalesce(i.status, 'new')
    END AS status,
    CASE
        WHEN f.skipped_reason IS NOT NULL THEN f.skipped_reason
        WHEN f.image_id IS NULL THEN f.unread_reason
        WHEN c.first_path <> f.path THEN 'exact_duplicate'
        ELSE i.reason
    END AS reason,
    CASE
        WHEN f.skipped_reason IS NOT NULL THEN NULL
        WHEN f.image_id IS NULL THEN f.unread_detail
        WHEN c.first_path <> f.path THEN 'same content as ' || c.first_path
        ELSE i.detail
    END AS detail
FROM dataset_files f LEFT JOIN images i USING (image_id) LEFT JOIN copied c USING (image_id);

-- Which accepted image belongs to which class, with the one path that stands for it.
CREATE VIEW class_images AS
SELECT c.class, c.display_name, f.path, i.*
FROM files f
JOIN images i USING (image_id)
JOIN classes c ON NOT c.retired AND (f.class = c.class OR f.class IS NULL)
WHERE f.status = 'accepted';
