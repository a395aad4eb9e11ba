import json

import pytest
from support.tiny import tiny_model


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def tiny_of_each_type(request, tmp_path_factory):
    """The tiny model of 64 x 64, once for each of what its U-Net predicts."""
    from sdpipe import Pipeline

    folder = tiny_model(tmp_path_factory.mktemp(request.param), size=64)
    config = folder / "scheduler" / "scheduler_config.json"
    values = json.loads(config.read_text()) | {"prediction_type": request.param}
    config.write_text(json.dumps(values))
    return Pipeline(folder, device="cpu", dtype="float32")
