"""Settings that would let anybody in, or that cannot work, are refused before a server starts."""

import pytest

from snl_runtime.errors import ConfigError
from snl_runtime.station.outputs.opcua import OpcUaConfig, OpcUaOutput

pytestmark = pytest.mark.station
pytest.importorskip("asyncua", reason="needs pip install 'snl-edge[opcua]'")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": "http://127.0.0.1"}, r"opcua.endpoint must read opc.tcp://HOST:PORT/NAME, got 'http://127.0.0.1'"),
        ({"endpoint": "opc.tcp://0.0.0.0:4840/snl"}, "set opcua.users_file, or"),
        ({"endpoint": "opc.tcp://0.0.0.0:4840/snl", "certificate_file": "a", "private_key_file": "b"}, "set opcua.users_file, or"),
        ({"clients_file": "a"}, "opcua.clients_file needs opcua.certificate_file"),
        ({"endpoint": "opc.tcp://127.0.0.1:99999/"}, "has no usable port"),
        ({"certificate_file": "a.pem"}, "belong together"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        OpcUaConfig(**changes)


@pytest.mark.parametrize(("text", "mode", "message"), [("plc", 0o600, "name:password"), ("", 0o600, "empty"), ("a:b", 0o644, "chmod 600")])
def test_unusable_users_file_is_refused(tmp_path, text, mode, message):
    users = tmp_path / "users"
    users.write_text(text, encoding="utf-8")
    users.chmod(mode)
    with pytest.raises(ConfigError, match=message):
        OpcUaOutput(OpcUaConfig(users_file=str(users)), ["one"])
