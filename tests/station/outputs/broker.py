"""A real mosquitto that can be killed, and a real subscriber with a session that the broker keeps."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import threading

import pytest

WAIT_S = 20.0
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class Broker:
    """mosquitto on a fixed port, with its sessions on disk; started, killed and started again."""

    def __init__(self, folder, port, *, extra=""):
        if MOSQUITTO is None:
            pytest.skip("needs mosquitto: apt-get install mosquitto")
        self.folder, self.port, self.process = folder, port, None
        self.sessions = folder / "mosquitto.db"
        (folder / "mosquitto.conf").write_text(
            f"listener {port} 127.0.0.1\nuser root\npersistence true\npersistence_location {folder}/\n"
            "max_inflight_messages 0\nmax_queued_messages 0\n" + (extra or "allow_anonymous true\n"),
            encoding="utf-8",
        )

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", self.folder / "mosquitto.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder
        )
        self._wait(self._answers, "mosquitto to listen")

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait(WAIT_S)

    def save_sessions(self):
        """Have the broker write its sessions to the disk, so that they outlive kill -9."""
        self.sessions.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        self._wait(self.sessions.exists, "mosquitto to save its sessions")

    def _answers(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def _wait(self, holds, what):
        pause = threading.Event()
        for _ in range(int(WAIT_S / 0.01)):
            if holds():
                return
            assert self.process.poll() is None, "mosquitto ended"
            pause.wait(0.01)
        raise AssertionError(f"not in time: {what}")


class Subscriber:
    """Notes every message; comes back by itself after the broker did."""

    def __init__(self, port, topic, *, client_id="plant", username=None, password=None):
        import paho.mqtt.client as paho

        self.messages, self.changed = [], threading.Condition()
        self._subscribed = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False, protocol=paho.MQTTv311)
        if username:
            self.client.username_pw_set(username, password)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = self._note
        self._port = port

    def __enter__(self):
        self.client.connect("127.0.0.1", self._port, keepalive=5)
        self.client.loop_start()
        assert self._subscribed.wait(WAIT_S)
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        self.client.loop_stop()

    def _note(self, _client, _userdata, message):
        is_command = message.topic.endswith("/command")  # anything, and its own
        with self.changed:
            self.messages.append((message.topic, None if is_command or not message.payload else json.loads(message.payload), message.retain))
            self.changed.notify_all()

    def wait(self, holds, timeout_s=WAIT_S):
        with self.changed:
            assert self.changed.wait_for(lambda: holds(self.messages), timeout_s), self.messages[-3:]
            return list(self.messages)

    def publish(self, topic, payload, *, retain=False):
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(WAIT_S)
