"""A Motion JPEG camera as a process of its own: mjpeg_server.py PORT. Lines on stdin change it: size W H, every SECONDS, stall, still."""

import http.server
import sys
import threading
import time

import cv2
import numpy as np


class Camera:
    size_hw = (48, 64)
    every_s = 0.04
    still = False
    stalled_connections = 0  # connections up to this number send nothing any more
    connections = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_GET(self):
        Camera.connections += 1
        number = Camera.connections
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        random = np.random.default_rng(number)
        image = random.integers(0, 256, (*Camera.size_hw, 3), dtype=np.uint8)
        try:
            while True:
                if number <= Camera.stalled_connections:
                    time.sleep(0.05)
                    continue
                if not Camera.still or image.shape[:2] != Camera.size_hw:
                    image = random.integers(0, 256, (*Camera.size_hw, 3), dtype=np.uint8)
                picture = cv2.imencode(".jpg", image)[1].tobytes()
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture + b"\r\n")
                time.sleep(Camera.every_s)
        except OSError:
            return  # the reader went away


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
for line in sys.stdin:
    word, *values = line.split()
    if word == "size":
        Camera.size_hw = (int(values[1]), int(values[0]))
    elif word == "every":
        Camera.every_s = float(values[0])
    elif word == "still":
        Camera.still = True
    elif word == "stall":
        Camera.stalled_connections = Camera.connections
