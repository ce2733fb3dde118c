"""Send one image to snl-serve and act on the answer: python client.py http://127.0.0.1:8000 part.png bottle [TOKEN]."""

import json
import sys
import urllib.error
import urllib.parse
import urllib.request


def verdict_of(service: str, file: str, product: str, token: str = "") -> str:
    """Return the verdict; whatever goes wrong on the way is an ERROR, never a PASS."""
    try:
        with open(file, "rb") as image:  # noqa: PTH123
            url = f"{service}/inspect?{urllib.parse.urlencode({'product': product})}"
            request = urllib.request.Request(url, image.read(), {"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=2) as answer:
            return str(json.load(answer)["verdict"]) if answer.status == 200 else "ERROR"
    except (OSError, ValueError, KeyError):  # urllib's own errors are OSError
        return "ERROR"


if __name__ == "__main__":
    print(verdict_of(*sys.argv[1:]))
