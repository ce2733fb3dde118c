"""A Motion JPEG camera of parts that the tests' model knows, as a process of its own: mjpeg_camera.py PORT.

A line on stdin changes what it sends: ``good``, ``bad``, ``cut`` (half of each JPEG), ``flip`` (damaged bytes), ``size W H``, ``every SECONDS``.
Every frame shows another part, so that no camera looks frozen.
"""

import http.server
import itertools
import sys
import threading

import cv2

from station_process import model_fixtures

PARTS = 60
LOSSLESS = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]


class Camera:
    kind = "good"
    size_wh = None
    every_s = 0.02


def pictures():
    fixtures = model_fixtures()
    return {kind: [make(seed) for seed in range(PARTS)] for kind, make in (("good", fixtures.good_frame), ("bad", fixtures.bad_frame))}


def encoded(number):
    image = PICTURES["bad" if Camera.kind == "bad" else "good"][number % PARTS]
    if Camera.size_wh is not None:
        image = cv2.resize(image, Camera.size_wh)
    data = cv2.imencode(".jpg", image, LOSSLESS)[1].tobytes()
    if Camera.kind == "cut":
        return data[: len(data) // 2]
    if Camera.kind == "flip":
        middle = len(data) * 3 // 4
        return data[:middle] + bytes(byte ^ 0x5A for byte in data[middle : middle + 40]) + data[middle + 40 :]
    return data


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        pause = threading.Event()
        try:
            for number in itertools.count():
                picture = encoded(number)
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture + b"\r\n")
                pause.wait(Camera.every_s)
        except OSError:
            return  # the reader went away


PICTURES = pictures()
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print("listens", flush=True)
for line in sys.stdin:
    word, *values = line.split()
    if word == "size":
        Camera.size_wh = (int(values[0]), int(values[1]))
    elif word == "every":
        Camera.every_s = float(values[0])
    else:
        Camera.kind, Camera.size_wh = word, None
    print("done", flush=True)
