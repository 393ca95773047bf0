"""Makes the gRPC stubs from the protos when the program starts.

A program of yours would generate them once, when it is built, and ship them. Here they are made anew
each time, so that the example always speaks the contract that lies beside it.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[2] / "proto"
# google/protobuf/*.proto, which our protos import, come with grpc_tools.
GOOGLE_PROTOS = Path(grpc_tools.__file__).parent / "_proto"


@contextlib.contextmanager
def generated():
    """While this lasts, `tidings.v1` can be imported. What has been imported stays."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--proto_path={PROTOS}", f"--proto_path={GOOGLE_PROTOS}"]
        outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
        protos = sorted(str(path) for path in PROTOS.rglob("*.proto"))
        if not protos or protoc.main(["protoc", *options, *outputs, *protos]) != 0:
            raise RuntimeError(f"no stubs could be made from {PROTOS}")
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
