from support.errors import raises

from sdpipe import UsageError
from sdpipe.batches import split_into_batches


def images(pipe, prompts, **settings):
    return pipe.plan(prompts, **{"steps": 4, "dim": 64, **settings})[0]


def sizes(pipe, settings, **options):
    return [len(batch) for batch in split_into_batches(pipe.components, settings, **options)]


def test_a_batch_has_at_most_so_many_images_and_pixels(emoji):
    settings = images(emoji, ["cat", "dog", "owl"], seed=1)
    assert sizes(emoji, settings) == [3]
    assert sizes(emoji, settings, most=2) == [2, 1]
    assert sizes(emoji, images(emoji, "cat", n=17, dim=512)) == [16, 1]
    assert sizes(emoji, images(emoji, "cat", n=2, dim=4096)) == [1, 1]


def test_neighbours_are_together_where_only_prompts_and_seeds_differ(emoji):
    a, b = images(emoji, "cat", seed=1), images(emoji, "dog", seed=9, negative_prompt="owl")
    other = images(emoji, "cat", seed=1, g=2.0)
    assert sizes(emoji, a + b) == [2]
    assert sizes(emoji, a + other + b) == [1, 1, 1]
    varied = images(emoji, "cat", seed=1, n=3, variation_strength=0.2)
    assert sizes(emoji, a + varied) == [1, 3]


def test_batch_invariant_images_are_drawn_alone(emoji):
    assert sizes(emoji, images(emoji, ["cat", "dog"], batch_invariant=True)) == [1, 1]


def test_batches_number_their_images_in_order(emoji):
    settings = images(emoji, ["cat", "red apple " * 60, "dog", "owl"])
    batches = split_into_batches(emoji.components, settings)
    assert [batch.images for batch in batches] == [range(1), range(1, 2), range(2, 4)]
    assert [s for batch in batches for s in batch.settings] == settings


def test_prompts_that_fill_the_memory_together_are_refused(emoji):
    """Each is one that is drawn: all texts of one are as long as the longest of the other."""
    changing, long = "|".join("apple " * k for k in range(1, 21)), "apple " + "BREAK apple " * 200
    changing = f"[{changing}]"
    for prompt, negative in ((changing, ""), ("apple", long)):
        settings = images(emoji, prompt, negative_prompt=negative, steps=20)
        assert sizes(emoji, settings) == [1]
    together = images(emoji, changing, negative_prompt=long, steps=20)
    with raises(UsageError, value="20 texts", rule="201 chunks each", remedy="shorten them"):
        split_into_batches(emoji.components, together)
