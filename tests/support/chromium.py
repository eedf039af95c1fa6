"""Drives headless Chromium over its debugging pipe, with the standard library only: opens a page,
sends mouse and key events, reads values."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

EXECUTABLE = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,1400",
    "--remote-debugging-pipe",
]
# Chromium reads commands from file descriptor 3 and answers on 4.
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A page in its own browser, which the context manager ends."""

    def __init__(self, profile: Path, seconds: float = 60) -> None:
        self.seconds = seconds
        self.count = 0
        self.buffer = b""
        self.session = None
        commands, self.commands = _pipe()
        self.answers, answers = _pipe()
        command = [
            sys.executable,
            "-c",
            _START,
            str(commands),
            str(answers),
            EXECUTABLE,
            *FLAGS,
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            command,
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method: str, **parameters: object) -> dict:
        """Sends a command of the DevTools protocol and returns its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(method)
            # Messages without this id are events.
            if answer.get("id") == self.count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self, method: str) -> dict:
        """The next message. Messages end with a zero byte."""
        while b"\0" not in self.buffer:
            if not select.select([self.answers], [], [], self.seconds)[0]:
                raise TimeoutError(f"Chromium did not answer {method} in {self.seconds} s")
            chunk = os.read(self.answers, 1 << 16)
            if not chunk:
                raise RuntimeError(f"Chromium ended during {method}")
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def resize(self, width: int, height: int) -> None:
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        ends = time.monotonic() + self.seconds
        while self.value("location.href == 'about:blank' || document.readyState != 'complete'"):
            assert time.monotonic() < ends, f"{url} did not load in {self.seconds} s"
            time.sleep(0.05)

    def value(self, expression: str) -> object:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def drag(self, element: str, to: int) -> None:
        """Drags the thumb of a range input (16 pixels wide) to position `to`."""
        left, width, y, now, most = self.value(f"""(e => {{
            e.scrollIntoView({{block: "center"}});
            const box = e.getBoundingClientRect();
            return [box.left, box.width, box.top + box.height / 2, +e.value, +e.max];
        }})(document.getElementById("{element}"))""")
        start, end = (left + 8 + (width - 16) * position / most for position in (now, to))
        for kind, x in (
            ("mousePressed", start),
            ("mouseMoved", (start + end) / 2),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=1,
                clickCount=1,
            )

    def press(self, element: str, text: str) -> None:
        """Focuses an element and types. A list selects the entry that begins with the text."""
        self.value(f"document.getElementById('{element}').focus()")
        for character in text:
            self.call("Input.dispatchKeyEvent", type="keyDown", text=character, key=character)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=character)


def _pipe() -> list[int]:
    """Both ends of a pipe, with numbers above those that Chromium needs."""
    ends = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in ends]
    for fd in ends:
        os.close(fd)
    return high
