"""A Modbus TCP server that shows every camera in one block of registers, and takes triggers, resets and heartbeats from a PLC."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from snl_runtime.errors import ConfigError, SinkError, SnlError, TriggerRefusedError
from snl_runtime.station.line_state import LineCommands, LineState
from snl_runtime.station.outputs import modbus_map as layout
from snl_runtime.station.outputs.addresses import check_port, is_loopback
from snl_runtime.station.outputs.packages import import_for
from snl_runtime.station.outputs.server_thread import ServerThread

HIGHEST_PRODUCT = 65535
MAX_CAMERAS = 16

_HEARTBEATS_PER_S = 2
_READ_DISCRETE_INPUTS, _READ_INPUT = 2, 4
_COILS = frozenset({1, 5, 15})
"""Functions of a table that this server does not have, though the library asks for one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModbusConfig:
    """Where the Modbus TCP server listens and which numbers products have."""

    host: str = "127.0.0.1"
    """Address to listen on. Modbus has no passwords and no encryption: whoever reaches it can trigger, so name the interface of the machine network
    and keep others out with a firewall."""
    port: int = 502
    """TCP port; below 1024 the system asks for a privilege."""
    unit: int = 0
    """Unit id that is answered, 1 to 247; 0 answers every unit id."""
    products: dict[str, int] = field(default_factory=dict)
    """Number of each product, 1 to 65535; 0 stands for none named."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("modbus.host must name an address to listen on, got ''")
        check_port("modbus.port", self.port)
        if not 0 <= self.unit <= 247:
            raise ConfigError(f"modbus.unit must be from 0 (any) to 247, got {self.unit}")
        for product, number in self.products.items():
            if not 1 <= number <= HIGHEST_PRODUCT:
                raise ConfigError(f"modbus.products.{product} must be from 1 to {HIGHEST_PRODUCT}, got {number}")
        if len(set(self.products.values())) != len(self.products):
            raise ConfigError("modbus.products gives the same number to two products")


class ModbusOutput:
    """Shows each camera as 16 input registers and five discrete inputs, and reads its commands from four holding registers.

    The map is in ``modbus_map`` and docs/guides/plc.md; camera number k of ``cameras`` begins at address 100 k in every table. A request is answered
    from one state per camera, so a block that is read in one request is one state whole.

    Args:
        config: Where it listens and the numbers of the products.
        cameras: Names of the cameras, at most 16.

    Raises:
        ConfigError: If the package pymodbus is missing, or there are too many cameras.
    """

    def __init__(self, config: ModbusConfig, cameras: Sequence[str]) -> None:
        import_for("modbus", "pymodbus.server", extra="modbus")
        if not 1 <= len(cameras) <= MAX_CAMERAS:
            raise ConfigError(f"modbus serves 1 to {MAX_CAMERAS} cameras, got {len(cameras)}")
        self._config = config
        self._cameras = {name: _CameraRegisters(name, config.products) for name in cameras}
        self._thread: ServerThread | None = None

    def bind(self, commands: dict[str, LineCommands]) -> None:
        """Give the commands of each camera by its name; before it is entered."""
        for name, camera in self._cameras.items():
            camera.commands = commands.get(name)

    def __enter__(self) -> "ModbusOutput":
        if not is_loopback(self._config.host):
            logger.warning("Modbus server %s:%d takes triggers from every machine that reaches it", self._config.host, self._config.port)
        address = f"{self._config.host}:{self._config.port}"
        self._thread = ServerThread(f"Modbus server {address}", _ModbusServer(self._config, tuple(self._cameras.values())))
        self._thread.open()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Close the server and its connections."""
        if self._thread is not None:
            self._thread.close()

    def publish(self, state: LineState) -> None:
        """Replace the state that every later request is answered from.

        Raises:
            SinkError: If the server has ended.
        """
        if self._thread is None:
            raise SinkError("the Modbus output was not entered")
        if state.camera not in self._cameras:
            raise SinkError(f"the Modbus output has no camera '{state.camera}'; it has {', '.join(self._cameras)}")
        self._cameras[state.camera].state = state
        self._thread.check()


class _CameraRegisters:
    """One camera's registers, computed from the state at the moment of a request."""

    def __init__(self, name: str, products: dict[str, int]) -> None:
        self.state = LineState(camera=name)
        self.commands: LineCommands | None = None
        self._numbers = products
        self._products: dict[int, str | None] = {number: product for product, number in products.items()} | {0: None}
        self._written: dict[int, int | None] = {layout.TRIGGER_COUNTER: None, layout.HEARTBEAT_COUNTER: None, layout.RESET_COUNTER: None}
        self._product = 0
        self._started = (0, 0)

    def input_registers(self) -> list[int]:
        """Return the block of one state."""
        state = self.state  # one look: another thread may replace it meanwhile
        trigger_id, counter = self._started
        return layout.input_block(
            state,
            product=self._numbers.get(state.product or "", 0),
            counter=counter if trigger_id and trigger_id == state.trigger_id else 0,
            heartbeat=int(time.monotonic() * _HEARTBEATS_PER_S) & 0xFFFF,
        )

    def write(self, values: dict[int, int]) -> None:
        """Act on holding registers that a PLC writes, the trigger last.

        Args:
            values: New values by address within the camera.

        Raises:
            ValueError: If a product number has no product; nothing was triggered.
            SnlError: What the command raised.
        """
        self._product = values.get(layout.PRODUCT_REQUEST, self._product)
        if self._changes(layout.HEARTBEAT_COUNTER, values) and self.commands is not None:
            self.commands.heartbeat()
        if self._changes(layout.RESET_COUNTER, values) and self.commands is not None:
            self.commands.reset()
        if self._changes(layout.TRIGGER_COUNTER, values):
            self._trigger(values[layout.TRIGGER_COUNTER])

    def _trigger(self, counter: int) -> None:
        if self._product not in self._products:
            raise ValueError(f"product number {self._product} is not in modbus.products")
        if self.commands is None:
            raise TriggerRefusedError(f"camera {self.state.camera} takes no trigger by command")
        trigger_id = self.commands.trigger(product=self._products[self._product])
        self._started = (trigger_id, counter)

    def _changes(self, register: int, values: dict[int, int]) -> bool:
        """Whether a counter moved to another value than 0; the first write after the start only says where it stands."""
        if register not in values:
            return False
        before, self._written[register] = self._written[register], values[register]
        return before is not None and before != values[register] and values[register] != 0


class _ModbusServer:
    """The pymodbus server; every method belongs to its loop."""

    def __init__(self, config: ModbusConfig, cameras: Sequence[_CameraRegisters]) -> None:
        self._config, self._cameras = config, cameras
        self._server: Any = None

    async def start(self) -> None:
        """Listen."""
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice

        def table(count: int, kind: Any, value: object) -> list[Any]:
            return [SimData(layout.STRIDE * number, count=count, values=value, datatype=kind) for number in range(len(self._cameras))]

        coils = [SimData(0, count=16, values=False, datatype=DataType.BITS)]
        tables = (
            coils,
            table(layout.BITS, DataType.BITS, False),
            table(layout.COMMAND_REGISTERS, DataType.REGISTERS, 0),
            table(layout.BLOCK_REGISTERS, DataType.REGISTERS, 0),
        )
        device = SimDevice(self._config.unit, simdata=tables, action=self._on_request)
        self._server = ModbusTcpServer(device, address=(self._config.host, self._config.port))
        await self._server.serve_forever(background=True)

    async def stop(self) -> None:
        """Close the port and every connection."""
        await self._server.shutdown()

    async def _on_request(
        self, function: int, start: int, address: int, _count: int, registers: list[int], written: list[int] | list[bool] | None
    ) -> Any:
        """Bring the table up to date before a request is answered from it, or act on what is written.

        Never waits, so that no other request and no later state comes between this and the answer.
        """
        if function in _COILS:
            from pymodbus.constants import ExcCodes

            return ExcCodes.ILLEGAL_FUNCTION
        if written is not None:
            return self._on_write(address, [int(value) for value in written])
        if function == _READ_INPUT:
            for number, camera in enumerate(self._cameras):
                first = layout.STRIDE * number - start
                registers[first : first + layout.BLOCK_REGISTERS] = camera.input_registers()
        elif function == _READ_DISCRETE_INPUTS:
            self._refresh_bits(start, registers)
        return None

    def _refresh_bits(self, start: int, registers: list[int]) -> None:
        for number, camera in enumerate(self._cameras):
            for place, bit in enumerate(layout.status_bits(camera.state)):
                word, shift = divmod(layout.STRIDE * number + place, 16)
                cleared = registers[word - start] & ~(1 << shift)
                registers[word - start] = cleared | (bit << shift)

    def _on_write(self, address: int, written: list[int]) -> Any:
        from pymodbus.constants import ExcCodes

        number, first = divmod(address, layout.STRIDE)
        camera = self._cameras[number]
        try:
            camera.write(dict(enumerate(written, start=first)))
        except TriggerRefusedError as error:
            logger.warning("Modbus trigger of %s was refused: %s", camera.state.camera, error)
            return ExcCodes.DEVICE_BUSY
        except ValueError as error:
            logger.warning("Modbus write to %s was refused: %s", camera.state.camera, error)
            return ExcCodes.ILLEGAL_VALUE
        except SnlError as error:
            logger.warning("Modbus command to %s failed: %s", camera.state.camera, error)
            return ExcCodes.DEVICE_FAILURE
        return None
