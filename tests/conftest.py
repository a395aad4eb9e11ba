import os

# Before anything imports torch or huggingface_hub: tests use no network and one thread a worker.
for name in [
    n for n in os.environ if n.startswith(("HF_", "HUGGING_FACE_")) or n == "SDPIPE_MODEL"
]:
    del os.environ[name]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def emoji():
    """The built-in model in float32 on the CPU, as everything that is compared bit by bit needs."""
    from sdpipe import Pipeline

    return Pipeline("emoji", device="cpu", dtype="float32")
