"""What a caller hears when the store of answers cannot be asked."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.cache.domain.ports import StoreUnavailable
from services.common.errors import NotReady


@contextmanager
def store_errors() -> Iterator[None]:
    """Around calls of the domain: an unreachable store is NotReady, and worth another try in a second."""
    try:
        yield
    except StoreUnavailable:
        raise NotReady("the cache's store cannot be reached", retry_after_s=1.0) from None
