"""How a prompt is cut into tokens and chunks."""

import pytest
from support.tiny import write_tokenizer

from sdpipe.prompt.chunks import Chunk, make_chunks, tokenize_prompts
from sdpipe.prompt.syntax import parse
from sdpipe.prompt.tree import Timing


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of 77 places, as CLIP's."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def chunks(tokenizer, prompt):
    return make_chunks(tokenizer, parse(prompt).at(0, 1))


def words(tokenizer, prompt):
    """The words of each chunk."""
    texts = []
    for chunk in chunks(tokenizer, prompt):
        assert len(chunk.ids) == len(chunk.weights) == tokenizer.model_max_length
        assert chunk.ids[0] == tokenizer.bos_token_id
        end = chunk.ids.index(tokenizer.eos_token_id)
        assert set(chunk.ids[end:]) == {tokenizer.eos_token_id}
        texts.append(tokenizer.decode(chunk.ids[1:end]).split())
    return texts


def test_a_long_prompt_continues_in_further_chunks(tokenizer):
    def count(prompt, steps=1):
        return len(tokenize_prompts(tokenizer, [prompt], Timing(steps))[prompt])

    assert count("cat " * 75) == 1
    assert count("cat " * 76) == 2
    assert count("cat " * 150) == 2
    assert count(f"[cat:{'dog ' * 160}:0.5]", 4) == 3
    full = Chunk(tuple(tokenizer("cat " * 75).input_ids), (1.0,) * 77)
    assert chunks(tokenizer, "cat " * 150) == [full, full]


def test_a_chunk_ends_at_a_comma_among_its_last_20_tokens(tokenizer):
    """A1111 with its `comma_padding_backtrack` of 20."""

    def sizes(before, after):
        found = words(tokenizer, f"{'cat ' * before}, {'dog ' * after}")
        assert [word for chunk in found for word in chunk] == (
            ["cat"] * before + [","] + ["dog"] * after
        )
        return [len(chunk) for chunk in found]

    assert sizes(60, 14) == [75]
    assert sizes(60, 15) == [61, 15]
    assert sizes(55, 20) == [56, 20]
    assert sizes(54, 21) == [75, 1]  # 21 tokens before the end of the chunk
    assert sizes(74, 3) == [75, 3]
    assert sizes(75, 3) == [75, 4]  # the comma itself does not fit
    assert sizes(60, 90) == [61, 75, 15]
    several = words(tokenizer, f"{'cat ' * 57}, {'cat ' * 3}, {'dog ' * 20}")
    assert [len(chunk) for chunk in several] == [62, 20]


def test_break_begins_a_chunk(tokenizer):
    assert words(tokenizer, "cat BREAK red dog") == [["cat"], ["red", "dog"]]
    assert words(tokenizer, "cat BREAK BREAK dog") == [["cat"], [], ["dog"]]
    assert words(tokenizer, "BREAK dog") == [[], ["dog"]]
    assert words(tokenizer, "cat BREAK") == [["cat"]]
    assert words(tokenizer, "cat " * 75 + "BREAK dog") == [["cat"] * 75, ["dog"]]


def test_each_token_has_the_weight_of_its_text(tokenizer):
    (chunk,) = chunks(tokenizer, "a (red cat:1.5) dog")
    assert chunk.weights == (1.0, 1.0, 1.5, 1.5, *[1.0] * 73)


def test_padding_is_the_tokenizers_own_token(tmp_path):
    """Stable Diffusion 2 pads with another token than the end mark."""
    tokenizer = write_tokenizer(tmp_path)
    tokenizer.pad_token = "!"
    (chunk,) = chunks(tokenizer, "red cat")
    expected = tokenizer("red cat", padding="max_length").input_ids
    assert list(chunk.ids) == expected
    assert expected[4] == tokenizer.convert_tokens_to_ids("!") != expected[3]


def test_a_prompt_has_a_variant_for_each_of_its_texts(tokenizer):
    cat, dog, empty = (tuple(chunks(tokenizer, text)) for text in ("cat", "dog", ""))
    tokenized = tokenize_prompts(tokenizer, ["[cat:dog:2]", "dog", "dog"], Timing(4))
    assert list(tokenized) == ["[cat:dog:2]", "dog"]
    assert tokenized["[cat:dog:2]"].variants == (cat, dog)
    assert tokenized["[cat:dog:2]"].schedule == (0, 0, 1, 1)
    assert tokenized["dog"].variants == (dog,)
    assert tokenized["dog"].schedule == (0,)
    assert tokenized["dog"].padded(0, 3) == [*dog, *empty, *empty]
