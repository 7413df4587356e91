"""A child that is confined and then says exactly the bytes it was told to, as no child of ours would."""

from __future__ import annotations

import os
import time

from worker import forkserver

LINES = {
    "rubbish": b"\x00\xff\x00 rubbish\n",
    "unknown": b'{"type":"owned"}\n',
    "extra": b'{"type":"log","text":"x","key":"../../etc/passwd"}\n',
    "nan": b'{"type":"progress","fraction":NaN}\n',
    "huge number": b'{"type":"result","report":{"a":1e999}}\n',
    "deep": b'{"type":"result","report":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "negative": b'{"type":"checkpoint","step":-1}\n',
    "path": b'{"type":"checkpoint","step":"../../x"}\n',
    "no report": b'{"type":"result","report":{}}\n',
    "unknown error": b'{"type":"error","code":"root","detail":"x"}\n',
    "long log": b'{"type":"log","text":"' + b"x" * 100_000 + b'"}\n',
    "endless line": b"x" * (40 * 2**20),
    "empty lists": b'{"type":"result","report":{"a":[' + b"[]," * 5_000_000 + b"[]]}}\n",
    "numbers": b'{"type":"result","report":{"a":[' + b"0," * 7_000_000 + b"0]}}\n",
    "a text of four bytes a character": b'{"type":"result","report":{"a":"'
    + b"x" * 10_000_000
    + b'\xf0\x9f\x98\x80"}}\n',
    "long text": b'{"type":"result","report":{"a":"' + b"x" * 10_000_000 + b'\\ud83d\\ude00"}}\n',
    "long stage": b'{"type":"stage","name":"' + b"x" * 1_000_000 + b'"}\n',
    "many errors": b'{"type":"result","report":{"removed":{'
    + b",".join(b'"%d":[]' % n for n in range(199_000))
    + b"}}}\n",
    "silence": b"",
}

if __name__ == "__main__":
    request = forkserver.enter()
    line = LINES[request["spec"]["include"][0]]
    while line:
        line = line[os.write(request["messages"], line) :]
    if request["spec"]["include"][0] == "silence":
        os.close(request["messages"])
    time.sleep(60)
