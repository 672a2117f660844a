"""What a service is told when it starts. Secrets come from the environment only."""

import ipaddress
import os
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    SecretStr,
    model_validator,
)

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.models.cards import Count, ModelSettings
from labeling_pipeline.models.registry import EMBEDDED
from labeling_pipeline.models.remote import API_KEY

PORT = 6996


def _check_key(key: SecretStr) -> SecretStr:
    """Refuse a key that no header could carry as it is, above all an empty one."""
    text = key.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or text != text.strip():
        raise ValueError(f"{API_KEY}: expected printable ASCII characters only")
    return key


class ServiceConfig(BaseModel):
    """Models, address and limits of a service.

    ``models`` are names of the registry; the first that can do a task does it where a request names
    none. ``host`` and ``port`` are the address it is bound to. ``cors_origins`` are the web pages
    of other origins that may read answers. All limits are of one request, but for the queue's:
    ``queue_images`` and ``queue_pixels`` of all that are being worked on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field((EMBEDDED,), min_length=1)
    settings: ModelSettings = Field(default_factory=ModelSettings)  # type: ignore[arg-type]
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = PORT
    api_key: Annotated[SecretStr, AfterValidator(_check_key)] | None = None
    cors_origins: tuple[str, ...] = ()
    max_file_bytes: Count = 20 << 20
    max_files: Count = 16
    max_request_bytes: Count = 64 << 20
    max_pixels: Count = 50_000_000
    queue_images: Count = 64
    queue_pixels: Count = 200_000_000
    timeout_s: PositiveFloat = 60.0
    gather_s: Annotated[float, Field(ge=0)] = 0.005

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.max_file_bytes > self.max_request_bytes:
            raise ValueError(
                f"expected a request to be at least as large as a file, {self.max_file_bytes} "
                f"bytes, got {self.max_request_bytes}"
            )
        if self.max_files > self.queue_images:
            raise ValueError(
                "expected a queue at least as long as a request may have files, "
                f"{self.max_files}, got {self.queue_images}"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can reach the service."""
        return is_loopback(self.host)

    def check_exposure(self) -> None:
        """Raise if others could use the service without a key.

        Raises:
            ConfigurationError: says what to set.
        """
        if self.api_key is None and not self.is_local:
            raise ConfigurationError(
                f"the service would answer anybody who reaches {self.host}: set {API_KEY} to a "
                "long random text, or bind it to 127.0.0.1"
            )


def api_key_of_environment() -> SecretStr | None:
    """The key that every request must carry, if one is set."""
    key = os.environ.get(API_KEY, "").strip()
    return SecretStr(key) if key else None


def is_loopback(host: str) -> bool:
    """Whether a host name or an address, without a port, is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
