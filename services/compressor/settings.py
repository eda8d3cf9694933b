"""What the compressor can be told."""

from pydantic import Field

from services.common.settings import ServiceSettings, settings_config


class CompressorSettings(ServiceSettings):
    """Settings of the compressor, LLMMESH_COMPRESSOR_*."""

    model_config = settings_config("LLMMESH_COMPRESSOR_")

    max_characters: int = Field(
        1_000_000, ge=1, description="Chats with more text than this to shorten are left as they are."
    )
    workers: int = Field(1, ge=1, le=64, description="Chats that are shortened at the same time; more wait their turn.")
