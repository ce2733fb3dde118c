"""The address space of the OPC UA server and the order in which its values change."""

import asyncio
import logging
import math
import socket
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from snl_runtime.errors import SnlError, TriggerRefusedError
from snl_runtime.station.line_state import LineCommands, LineState
from snl_runtime.station.outputs.signals import accepted_trigger_id, shown_trigger_id

DEFAULT_PORT = 4840
NAMESPACE = "urn:snl-edge:line"
"""URI of the namespace of all nodes; its index is usually 2."""
NODES: Mapping[str, str] = {
    "ResultValid": "Boolean",
    "Accept": "Boolean",
    "AcceptedTriggerId": "UInt32",
    "State": "String",
    "Ready": "Boolean",
    "Busy": "Boolean",
    "Fault": "Boolean",
    "FaultReason": "String",
    "TriggerId": "UInt32",
    "Verdict": "String",
    "ReasonCode": "String",
    "Score": "Double",
    "Product": "String",
}
"""Variables of a camera with their OPC UA types."""
GUARDED = ("ResultValid", "Accept", "AcceptedTriggerId")
"""What goes false first and true last."""
RESULT_FIELDS = ("TriggerId", "Verdict", "ReasonCode", "Score", "Product", "Accept")
"""Fields of a result event beside those that every event has."""

_IDLE = {"ResultValid": False, "Accept": False, "AcceptedTriggerId": 0}
_HIGHEST_TEXT = 256

logger = logging.getLogger(__name__)


def node_values(state: LineState) -> dict[str, object]:
    """Return what the variables of a camera show of ``state``, by name."""
    accepted = accepted_trigger_id(state)
    return {
        "ResultValid": state.result_valid,
        "Accept": accepted != 0,
        "AcceptedTriggerId": accepted,
        "State": state.state.value,
        "Ready": state.ready,
        "Busy": state.busy,
        "Fault": state.fault,
        "FaultReason": state.fault_reason,
        "TriggerId": shown_trigger_id(state),
        "Verdict": "" if state.verdict is None else state.verdict.value,
        "ReasonCode": state.reason_code,
        "Score": math.nan if state.score is None else float(state.score),
        "Product": state.product or "",
    }


class OpcUaServer:
    """An asyncua server with one object per camera; every method but ``waiting`` belongs to its loop.

    Args:
        endpoint: Address to listen on.
        application_uri: URI of this server.
        certificate: Paths of certificate and private key; None for no encryption.
        users: Who may connect, in asyncua's form; None lets everybody in.
        commands: Commands of each camera; None for a camera that only shows.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        application_uri: str,
        certificate: tuple[str | None, str | None],
        users: Any,
        commands: Mapping[str, LineCommands | None],
    ) -> None:
        self._endpoint, self._application_uri, self._certificate, self._users = endpoint, application_uri, certificate, users
        self._commands = commands
        self._queue: asyncio.Queue[tuple[LineState, datetime]] = asyncio.Queue()
        self._cameras: dict[str, _CameraNodes] = {}
        self._server: Any = None
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """States that were published and whose data changes were not yet handed to the subscriptions; any thread."""
        return self._queue.qsize()

    def show(self, state: LineState, at: datetime) -> None:
        """Let the next Read see ``state``, and queue its data changes and events."""
        self._cameras[state.camera].shown = (node_values(state), at)
        self._queue.put_nowait((state, at))

    async def start(self) -> None:
        """Make the address space and listen."""
        from asyncua import Server, ua

        _check_free(self._endpoint)
        self._server = Server(user_manager=self._users)
        await self._server.init()
        self._server.set_endpoint(self._endpoint)
        self._server.set_server_name("snl-edge station")
        await self._server.set_application_uri(self._application_uri)
        if self._users is not None:
            self._server.set_identity_tokens([ua.UserNameIdentityToken])
        policies = [ua.SecurityPolicyType.NoSecurity]
        if self._certificate[0] is not None and self._certificate[1] is not None:
            policies = [ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt, ua.SecurityPolicyType.Aes256Sha256RsaPss_SignAndEncrypt]
            await self._server.load_certificate(Path(self._certificate[0]))
            await self._server.load_private_key(Path(self._certificate[1]))
        self._server.set_security_policy(policies)
        namespace = await self._server.register_namespace(NAMESPACE)
        await self._add_cameras(namespace)
        await self._server.start()
        self._task = asyncio.create_task(self._announce_changes())

    async def stop(self) -> None:
        """Hand out the changes that wait, then close the server."""
        if self._task is not None:
            await self._queue.join()
            self._task.cancel()
        await self._server.stop()

    async def _add_cameras(self, namespace: int) -> None:
        from asyncua import ua

        types = {"TriggerId": ua.VariantType.UInt32, "Score": ua.VariantType.Double, "Accept": ua.VariantType.Boolean}
        properties = [(name, types.get(name, ua.VariantType.String)) for name in RESULT_FIELDS]
        result_type = await self._server.create_custom_event_type(namespace, "ResultEventType", ua.ObjectIds.BaseEventType, properties)
        station = await self._server.nodes.objects.add_folder(ua.NodeId("Station", namespace), ua.QualifiedName("Station", namespace))
        for camera, commands in self._commands.items():
            nodes = _CameraNodes(self._server, namespace, camera)
            await nodes.add(station, result_type, commands)
            self._cameras[camera] = nodes

    async def _announce_changes(self) -> None:
        while True:
            state, at = await self._queue.get()
            try:
                await self._cameras[state.camera].announce(state, at)
            except Exception:  # one client's broken subscription must not silence the others
                logger.exception("OPC UA server could not announce a state of %s", state.camera)
            finally:
                self._queue.task_done()


class _CameraNodes:
    """The object of one camera: its variables, events and methods."""

    def __init__(self, server: Any, namespace: int, camera: str) -> None:
        self._server, self._namespace, self._camera = server, namespace, camera
        self._node_ids: dict[str, Any] = {}
        self._events: Any = None
        self._announced = node_values(LineState(camera=camera))
        self._last_result = 0
        self.shown: tuple[dict[str, object], datetime] = (self._announced, datetime.now(timezone.utc))
        """What a Read sees: values by name and their source timestamp."""

    async def add(self, station: Any, result_type: Any, commands: LineCommands | None) -> None:
        """Make the nodes below ``station``."""
        from asyncua import ua

        camera = await station.add_object(self._id(), ua.QualifiedName(self._camera, self._namespace))
        for name, kind in NODES.items():
            variant = ua.Variant(self._announced[name], getattr(ua.VariantType, kind))
            node = await camera.add_variable(self._id(name), ua.QualifiedName(name, self._namespace), variant)
            self._node_ids[name] = node.nodeid
            # Reads are answered from one dictionary, so that a request with several nodes sees one state; the setter keeps this callback in place
            # when a value is written for the subscriptions.
            self._server.set_attribute_value_callback(node.nodeid, self._reader(name))
            self._server.set_attribute_value_setter(node.nodeid, lambda *_: None)
        self._events = await self._server.get_event_generator(result_type, camera)
        if commands is not None:
            await self._add_methods(camera, commands)

    async def announce(self, state: LineState, at: datetime) -> None:
        """Hand the changes to the subscriptions: guarded values to false, the others, then guarded values to true; then the result event."""
        values = node_values(state)
        if all(_same(value, self._announced[name]) for name, value in values.items()):
            return
        for name in GUARDED:
            await self._write(name, _IDLE[name], at)
        for name in NODES:
            if name not in GUARDED:
                await self._write(name, values[name], at)
        for name in GUARDED:
            await self._write(name, values[name], at)
        if state.result_valid and state.trigger_id != self._last_result:
            self._last_result = state.trigger_id
            await self._send_event(values, at)

    async def _write(self, name: str, value: object, at: datetime) -> None:
        if _same(self._announced[name], value):
            return
        await self._server.write_attribute_value(self._node_ids[name], self._data_value(name, value, at))
        self._announced[name] = value

    async def _send_event(self, values: Mapping[str, object], at: datetime) -> None:
        for name in RESULT_FIELDS:
            setattr(self._events.event, name, values[name])
        await self._events.trigger(time_attr=at, message=f"{values['Verdict']} {values['ReasonCode']}")

    def _reader(self, name: str) -> Callable[[Any, Any], Any]:
        def read(_node: Any, _attribute: Any) -> Any:
            values, at = self.shown
            return self._data_value(name, values[name], at)

        return read

    def _data_value(self, name: str, value: object, at: datetime) -> Any:
        from asyncua import ua

        variant = ua.Variant(value, getattr(ua.VariantType, NODES[name]))
        return ua.DataValue(variant, SourceTimestamp=at, ServerTimestamp=datetime.now(timezone.utc))

    def _id(self, name: str = "") -> Any:
        from asyncua import ua

        return ua.NodeId(f"{self._camera}.{name}" if name else self._camera, self._namespace)

    async def _add_methods(self, camera: Any, commands: LineCommands) -> None:
        from asyncua import ua

        def trigger(_parent: Any, *arguments: Any) -> Any:
            product, part_id = (argument.Value or None for argument in arguments)
            return [ua.Variant(commands.trigger(product=product, part_id=part_id) & 0xFFFFFFFF, ua.VariantType.UInt32)]

        def reset(_parent: Any) -> Any:
            commands.reset()
            return []

        def heartbeat(_parent: Any) -> Any:
            commands.heartbeat()
            return []

        for name, function, inputs, outputs in (
            ("Trigger", trigger, ["Product", "PartId"], ["TriggerId"]),
            ("Reset", reset, [], []),
            ("Heartbeat", heartbeat, [], []),
        ):
            await camera.add_method(
                self._id(name),
                ua.QualifiedName(name, self._namespace),
                _checked(name, function, text_count=len(inputs)),
                [_argument(one, ua.ObjectIds.String) for one in inputs],
                [_argument(one, ua.ObjectIds.UInt32) for one in outputs],
            )


def _check_free(endpoint: str) -> None:
    """Fail at once on a port that is taken, rather than after the seconds that the standard nodes take.

    Raises:
        OSError: If nothing can listen there.
    """
    parts = urlsplit(endpoint)
    family = socket.AF_INET6 if ":" in (parts.hostname or "") else socket.AF_INET
    socket.create_server((parts.hostname or "", parts.port or DEFAULT_PORT), family=family).close()


def _argument(name: str, type_id: int) -> Any:
    from asyncua import ua

    return ua.Argument(Name=name, DataType=ua.NodeId(type_id), ValueRank=-1)


def _checked(name: str, function: Callable[..., Any], *, text_count: int) -> Callable[..., Any]:
    """Return ``function`` with its arguments checked and its errors as OPC UA status codes; asyncua calls it on a thread of its own."""
    from asyncua import ua

    def call(parent: Any, *arguments: Any) -> Any:
        if len(arguments) != text_count:
            too_many = len(arguments) > text_count
            return ua.StatusCode(ua.StatusCodes.BadTooManyArguments if too_many else ua.StatusCodes.BadArgumentsMissing)
        for argument in arguments:
            if argument.Value is not None and not isinstance(argument.Value, str):
                return _bad_argument(ua.StatusCodes.BadTypeMismatch, arguments, argument)
            if argument.Value is not None and (len(argument.Value) > _HIGHEST_TEXT or not argument.Value.isprintable()):
                return _bad_argument(ua.StatusCodes.BadOutOfRange, arguments, argument)
        try:
            return function(parent, *arguments)
        except TriggerRefusedError as error:
            logger.warning("OPC UA call of %s was refused: %s", name, error)
            return ua.StatusCode(ua.StatusCodes.BadInvalidState)
        except SnlError as error:
            logger.warning("OPC UA call of %s failed: %s", name, error)
            return ua.StatusCode(ua.StatusCodes.BadInvalidArgument)

    return call


def _bad_argument(code: int, arguments: tuple[Any, ...], bad: Any) -> Any:
    from asyncua import ua

    results = [ua.StatusCode(code if one is bad else ua.StatusCodes.Good) for one in arguments]
    return ua.CallMethodResult(StatusCode=ua.StatusCode(ua.StatusCodes.BadInvalidArgument), InputArgumentResults=results)


def _same(one: object, other: object) -> bool:
    is_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return is_nan or one == other
