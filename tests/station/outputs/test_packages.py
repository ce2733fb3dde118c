"""An output whose library is missing says in one line which extra brings it, before anything is opened."""

import sys

import pytest

from snl_runtime.errors import ConfigError
from snl_runtime.station.outputs.metrics import MetricsConfig, MetricsOutput
from snl_runtime.station.outputs.modbus import ModbusConfig, ModbusOutput
from snl_runtime.station.outputs.mqtt import MqttConfig, MqttConsumer
from snl_runtime.station.outputs.mqtt_state import MqttOutput
from snl_runtime.station.outputs.opcua import OpcUaConfig, OpcUaOutput

OUTPUTS = {
    "opcua": ("asyncua", lambda: OpcUaOutput(OpcUaConfig(), ["one"])),
    "modbus": ("pymodbus", lambda: ModbusOutput(ModbusConfig(), ["one"])),
    "mqtt": ("paho", lambda: MqttConsumer(MqttConfig(host="broker"))),
    "mqtt states": ("paho", lambda: MqttOutput(MqttConfig(host="broker"), ["one"])),
    "metrics": ("prometheus_client", lambda: MetricsOutput(MetricsConfig(), ["one"])),
}
EXTRAS = {"asyncua": "opcua", "pymodbus": "modbus", "paho": "mqtt", "prometheus_client": "web"}


@pytest.mark.parametrize("output", OUTPUTS)
def test_missing_library_is_named_with_its_extra(output, monkeypatch):
    package, make = OUTPUTS[output]
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Without(package), *sys.meta_path])
    with pytest.raises(ConfigError, match=rf"output .* needs the package [a-z-_]+: pip install 'snl-edge\[{EXTRAS[package]}\]'"):
        make()


class Without:
    """An importer that finds one package missing."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
