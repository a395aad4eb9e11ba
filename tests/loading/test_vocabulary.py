import json
import shutil

import pytest
from support.errors import raises

from sdpipe import ModelError, Pipeline
from sdpipe.loading.locate import BUILT_IN_FOLDER
from sdpipe.loading.vocabulary import FILE, find_vocabulary, read_vocabulary
from sdpipe.prompt.vocabulary import Vocabulary

GLYPHS = {"\U0001f333": "oak tree"}
GARDEN = Vocabulary.from_captions(["oak tree", "guitar"], ["on a red background"], GLYPHS)
BAD = '{"names": [], "words": [], "glyphs": ["x"]}'


def test_what_is_written_is_read(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(GARDEN.to_json()))
    assert read_vocabulary(tmp_path, "model") == GARDEN
    assert read_vocabulary(tmp_path / "elsewhere", "model") is None


def test_a_model_is_found_by_name(folder):
    assert find_vocabulary("emoji") == read_vocabulary(BUILT_IN_FOLDER / "emoji", "model")
    assert find_vocabulary(str(folder)) is None
    with raises(ModelError):
        find_vocabulary("./no-such-model")


@pytest.mark.parametrize("text", ["{", "[]", '{"names": []}', '{"names": [], "words": [1]}', BAD])
def test_a_damaged_file_is_refused(folder, tmp_path, text):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / FILE).write_text(text)
    with raises(ModelError, FILE):
        read_vocabulary(model, "model")
    with raises(ModelError, FILE):
        Pipeline(model)
