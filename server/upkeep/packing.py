"""A job as the archive keeps it: what `job show` says, in a tenth of its length.

Most of those texts is the same in every job, so each is deflated against a sample of one. A text begins with the number of its
sample. A sample never changes, for then nobody could read what was packed with it: for other words there will be a second one.
"""

from __future__ import annotations

import base64
import json
import zlib

from protocol.messages import from_wire, to_wire
from protocol.messages.views import JobView

SAMPLES = {
    "1": b'{"payloadFailed":"","error":"LOST_HEARTBEAT","errorCode":3100,"errorDetail":"silent since RUNNING; the job was claimed '
    b'by another pilot","exitCode":1,"error":"PAYLOAD_FAILED","errorCode":1305,"metrics":{"cpu_seconds":0.0,"max_rss_mb":0.0},'
    b'"CANCELLED","FAILED","EXTRACTED","resourceType":"gpu","blake3":"","adler32":"","sha256":"",'
    b'"jobId":1,"jobNr":1,"taskId":1,"task":"t","state":"COMPLETED","resourceType":"cpu","priority":0,"attemptNr":1,'
    b'"created":"2026-11-21T14:03:31.716Z","changed":"2026-11-21T14:03:31.918Z","pilotId":"p1","node":"node1","inputs":['
    b'{"lfn":"f00001.spd","scope":"in","dataset":"in","size":10,"checksums":{"md5":"0123456789abcdef"},'
    b'"url":"file:///data/f00001.spd","state":"available"}],"outputs":[{"lfn":"f00001.o","scope":"t.out","dataset":"t.out",'
    b'"size":3,"checksums":{"md5":"0123456789abcdef"},"url":"file:///srv/storage/t.out/f00001.o.1","state":"available","jobId":1}],'
    b'"attempts":[{"attemptId":1,"attemptNr":1,"state":"COMPLETED","pilotId":"p1","node":"node1","queue":"CPU","exitCode":0,'
    b'"started":"2026-11-21T14:03:31.846Z","ended":"2026-11-21T14:03:31.918Z","logUrl":"file:///srv/storage/log/task-1/job-1.1.tar.gz",'
    b'"metrics":{}}],"history":[{"state":"REGISTERED","at":"2026-11-21T14:03:31.716Z","attemptNr":0,"by":"task-executor","detail":""},'
    b'{"state":"READY","at":"2026-11-21T14:03:31.716Z","attemptNr":1,"by":"task-executor","detail":""},'
    b'{"state":"EXTRACTED","at":"2026-11-21T14:03:31.846Z","attemptNr":1,"by":"dispatcher","detail":""},'
    b'{"state":"OBTAINED","at":"2026-11-21T14:03:31.000Z","attemptNr":1,"by":"pilot p1","detail":""},'
    b'{"state":"PRE-PROCESSING","at":"2026-11-21T14:03:31.000Z","attemptNr":1,"by":"pilot p1","detail":""},'
    b'{"state":"STAGE-IN","at":"2026-11-21T14:03:31.000Z","attemptNr":1,"by":"pilot p1","detail":""},'
    b'{"state":"RUNNING","at":"2026-11-21T14:03:31.000Z","attemptNr":1,"by":"pilot p1","detail":""},'
    b'{"state":"FINISHED","at":"2026-11-21T14:03:31.000Z","attemptNr":1,"by":"pilot p1","detail":""},'
    b'{"state":"POST-PROCESSING","at":"2026-11-21T14:03:31.000Z","attemptNr":1,"by":"pilot p1","detail":""},'
    b'{"state":"STAGE-OUT","at":"2026-11-21T14:03:31.000Z","attemptNr":1,"by":"pilot p1","detail":""},'
    b'{"state":"COMPLETED","at":"2026-11-21T14:03:31.918Z","attemptNr":1,"by":"pilot p1","detail":""}]}',
}
LATEST = "1"


def pack(view: JobView) -> str:
    squeeze = zlib.compressobj(1, zdict=SAMPLES[LATEST])
    text = json.dumps(to_wire(view), separators=(",", ":")).encode()
    return LATEST + base64.b85encode(squeeze.compress(text) + squeeze.flush()).decode()


def unpack(packed: str) -> JobView:
    text = zlib.decompressobj(zdict=SAMPLES[packed[0]]).decompress(base64.b85decode(packed[1:]))
    return from_wire(JobView, json.loads(text))
