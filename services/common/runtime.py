"""The one bootstrap of every service: settings, telemetry, build, health, reflection, serve, stop with grace."""

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common import metrics
from services.common.interceptors import Registrar
from services.common.settings import ServiceSettings
from services.common.telemetry import Telemetry, configure_logging
from services.common.yaml_file import ConfigError

S = TypeVar("S", bound=ServiceSettings)
log = structlog.get_logger()

READINESS_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Service:
    """One gRPC service of a process.

    `add` is the stub's add_…_to_server. `missing` is polled: None when the service can work, else what it waits for.
    """

    name: str
    servicer: object
    add: Callable[[Any, Any], None]
    missing: Callable[[], Awaitable[str | None]] | None = None


Build = Callable[[S, AsyncExitStack], Awaitable[Sequence[Service]]]


def run(name: str, settings_type: type[S], build: Build[S]) -> None:
    """Runs a service until SIGTERM or SIGINT. Exits with 2 and one line of explanation when its configuration is wrong."""
    try:
        settings = settings_type.load()
        configure_logging(name, settings.log_level)
        uvloop.run(_serve(name, settings, build))
    except ConfigError as error:
        print(f"llmmesh-{name}: {error}", file=sys.stderr)
        sys.exit(2)


async def _serve(name: str, settings: S, build: Build[S]) -> None:
    telemetry = Telemetry(name)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with AsyncExitStack() as stack:
            services = await build(settings, stack)
            server, readiness = make_server(services, settings)
            # What is loaded by now stays: the collector need not walk through it again and again.
            gc.collect()
            gc.freeze()
            # What the calls under way hold is most of what is young, and goes by itself.
            gc.set_threshold(20_000, 10, 10)
            try:
                port = server.add_insecure_port(f"{settings.host}:{settings.port}")
            except RuntimeError:
                # Not status 2: the next attempt may find the port free.
                sys.exit(f"llmmesh-{name}: cannot listen on {settings.host}:{settings.port}: in use or not ours")
            await server.start()
            log.info("listening", address=f"{settings.host}:{port}")
            _serve_metrics(name, settings, stack)
            watch = asyncio.create_task(_watch(services, readiness))
            await stop.wait()
            log.info("stopping", grace_seconds=settings.grace_seconds)
            watch.cancel()
            await readiness.enter_graceful_shutdown()
            if settings.drain_seconds:
                await asyncio.sleep(settings.drain_seconds)
            await server.stop(settings.grace_seconds)
    finally:
        await asyncio.to_thread(telemetry.close)
        log.info("stopped")


def _serve_metrics(name: str, settings: ServiceSettings, stack: AsyncExitStack) -> None:
    if settings.metrics_port is None:
        return
    try:
        close = metrics.serve(name, settings.host, settings.metrics_port)
    except OSError as error:
        # Nobody who waits for an answer should go without because of a scrape.
        log.error("metrics_not_served", port=settings.metrics_port, error=error.strerror)
        return
    stack.push_async_callback(asyncio.to_thread, close)


def make_server(
    services: Sequence[Service], settings: ServiceSettings
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """A server with the services, health and reflection; not started, no port yet."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.so_reuseport", 0),
        # Clients keep idle connections alive with pings every 30 s.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if settings.max_connection_age_seconds:
        options.append(("grpc.max_connection_age_ms", int(settings.max_connection_age_seconds * 1000)))
    server = grpc.aio.server(options=options)
    readiness = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(readiness, server)
    registrar = Registrar(server)
    for service in services:
        service.add(service.servicer, registrar)
    names = [service.name for service in services]
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server, readiness


async def _missing(service: Service) -> str | None:
    try:
        return await service.missing() if service.missing else None
    except Exception as error:
        # Whatever it is, health goes on being told.
        log.exception("readiness_check_failed", service_name=service.name)
        return f"its readiness check failed: {type(error).__name__}"


async def _watch(services: Sequence[Service], readiness: health.aio.HealthServicer) -> None:
    """Keeps health true: each service by its name, and the process, by its first service, under the empty name."""
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    known: dict[str, str | None] = {}
    while True:
        for service in services:
            missing = await _missing(service)
            if service.name not in known or known[service.name] != missing:
                known[service.name] = missing
                if missing is None:
                    log.info("ready", service_name=service.name)
                else:
                    log.warning("not_ready", service_name=service.name, missing=missing)
            metrics.READY.labels(service.name).set(missing is None)
            await readiness.set(service.name, serving if missing is None else not_serving)
        # The first service is what the process is for; without the others it still belongs into the balancer.
        await readiness.set("", serving if known[services[0].name] is None else not_serving)
        await asyncio.sleep(READINESS_INTERVAL_S)
