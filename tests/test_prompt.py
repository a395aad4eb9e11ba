import pytest
import torch

from sdpipe import SdpipeWarning
from sdpipe.prompt import condition, cut_off, embed, tokenize


def test_tokens_are_start_words_end_and_padding(emoji):
    tokenizer = emoji.components.tokenizer
    ids = tokenize(tokenizer, "red apple")[0].tolist()
    assert len(ids) == tokenizer.model_max_length
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(ids[1:3]) == ["red</w>", "apple</w>"]
    assert set(ids[3:]) == {tokenizer.eos_token_id}


def test_a_text_is_embedded_the_same_bits_whatever_stands_beside_it(emoji):
    parts = emoji.components.tokenizer, emoji.components.text_encoder
    together = condition(*parts, ["cat", "dog", "cat"], ["", "", ""])
    alone = condition(*parts, ["dog"], [""])
    assert together.cond.shape == (3, emoji.components.tokenizer.model_max_length, 192)
    assert torch.equal(together.cond[1:2], alone.cond)
    assert torch.equal(together.cond[0], together.cond[2])
    assert torch.equal(together.uncond[0], alone.uncond[0])
    assert torch.equal(embed(*parts, "dog"), alone.cond)


def test_what_is_cut_off_is_named_in_whole_words(emoji):
    tokenizer = emoji.components.tokenizer
    room = tokenizer.model_max_length - 2
    assert cut_off(tokenizer, " ".join(["cat"] * room)) == ""
    assert cut_off(tokenizer, " ".join(["cat"] * room + ["red", "Apple"])) == "red Apple"
    # A word of several tokens that no longer fits is named from its first letter.
    assert len(tokenizer("xylographic").input_ids) > 4
    assert cut_off(tokenizer, " ".join(["cat"] * (room - 1) + ["xylographic"])) == "xylographic"


def test_a_prompt_that_is_too_long_warns_and_still_draws(emoji):
    long = " ".join(["cat"] * 22 + ["wearing", "a", "velvet hat"])
    with pytest.warns(SdpipeWarning, match="'wearing a velvet hat'"):
        result = emoji.generate(long, seed=0, steps=2)
    assert len(result.images) == 1
