"""A place to send prompts to, for tests of the prompt-cache planner."""

from dataclasses import dataclass

from services.common.money import Usage
from services.provider.domain.prompt_cache import Control, VendorCache


@dataclass(frozen=True)
class Spot:
    """A candidate, as far as the planner sees it."""

    model: str = "sonnet"
    vendor: str = "anthropic"
    cache: VendorCache = VendorCache(Control.BREAKPOINTS, 1024, 300, 3600)  # noqa: RUF009

    def usage(self, read: int = 0, written: int = 0, tokens: int = 0, output: int = 50) -> Usage:
        """What its vendor reports; `tokens` is the whole input, 0 for what was read and written alone."""
        return Usage(max(tokens, read + written), output, read, written)
