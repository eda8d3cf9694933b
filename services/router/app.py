"""What the router is made of."""

from contextlib import AsyncExitStack

from llmmesh.router.v1.router_pb2_grpc import add_RouterServiceServicer_to_server
from services.common.clock import SystemClock
from services.common.runtime import Service
from services.router.adapters.policy_files import PolicyFiles
from services.router.servicer import RouterServicer
from services.router.settings import RouterSettings


async def build(settings: RouterSettings, stack: AsyncExitStack) -> list[Service]:
    """The router's services. Raises ConfigError when the policy or the price book is wrong."""
    files = PolicyFiles(settings.policy_file, settings.prices_file, SystemClock())
    servicer = RouterServicer(files.catalogue)
    return [Service("llmmesh.router.v1.RouterService", servicer, add_RouterServiceServicer_to_server)]
