"""A real RTSP server (GStreamer's), run with the system's Python, which has the bindings: rtsp_server.py PORT WIDTH HEIGHT [FPS]."""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - the versions come first

port, width, height = sys.argv[1:4]
fps = sys.argv[4] if len(sys.argv) > 4 else "20"
Gst.init(None)
server = GstRtspServer.RTSPServer(service=port)
server.set_address("127.0.0.1")
factory = GstRtspServer.RTSPMediaFactory()
caps = f"video/x-raw,format=I420,width={width},height={height},framerate={fps}/1"
factory.set_launch(f"( videotestsrc is-live=true pattern=snow ! {caps} ! jpegenc ! rtpjpegpay name=pay0 )")
auth = GstRtspServer.RTSPAuth()
token = GstRtspServer.RTSPToken()
token.set_string("media.factory.role", "user")
auth.add_basic(GstRtspServer.RTSPAuth.make_basic("admin", "p4ss-word"), token)
server.set_auth(auth)
factory.add_role_from_structure(Gst.Structure.new_from_string("user,media.factory.access=true,media.factory.construct=true"))
server.get_mount_points().add_factory("/line", factory)
if server.attach(None) == 0:
    sys.exit("the port is in use")
print("ready", flush=True)
GLib.MainLoop().run()
