import math
from dataclasses import replace

import pytest
import torch
from support.drawn import assert_legible, drawn_texts
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.latents import angle_between, slerp
from sdpipe.show.interpolate import interpolate_data, interpolate_figure, lerp

# Few steps save time; whether a model draws well in them is not looked at here.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")


def two(seed=0, shape=(1, 4, 16, 16)):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g), torch.randn(shape, generator=g)


def test_the_ends_are_exact():
    a, b = two()
    assert slerp(a, b, 0) is a
    assert slerp(a, b, 1) is b
    assert lerp(a, b, 0) is a
    assert lerp(a, b, 1) is b
    assert torch.allclose(lerp(a, b, 0.25), 0.75 * a + 0.25 * b, atol=1e-6)


@pytest.mark.parametrize("f", [0.1, 0.5, 0.9])
def test_norms_are_kept_and_angles_shared_out(f):
    a, b = two()
    c = slerp(a, b, f)
    assert float(c.norm()) == pytest.approx((1 - f) * float(a.norm()) + f * float(b.norm()))
    whole = angle_between(a, b)
    assert angle_between(a, c) == pytest.approx(f * whole, rel=1e-4)
    assert angle_between(c, b) == pytest.approx((1 - f) * whole, rel=1e-4)
    straight = (1 - f) * a + f * b
    assert float(straight.norm()) < float(c.norm())


def test_known_angles():
    x, y = torch.tensor([1.0, 0, 0]), torch.tensor([0, 2.0, 0])
    assert angle_between(x, y) == pytest.approx(math.pi / 2)
    assert angle_between(x, x) == 0
    assert angle_between(x, -x) == pytest.approx(math.pi)
    assert torch.allclose(slerp(x, y, 0.5), 1.5 * torch.tensor([0.5**0.5, 0.5**0.5, 0]))
    assert torch.allclose(slerp(x, 3 * x, 0.5), 2 * x)


@pytest.mark.parametrize("scheduler", ["lms", "ddim", "heun", "dpm++"])
def test_the_ends_are_the_images_of_generate(emoji, scheduler):
    settings = {"steps": 2, "g": 2.0, "scheduler": scheduler, "dim": 64}
    way = interpolate_data(emoji, "red apple", "owl", seeds=[1, 7], frames=3, **settings)
    for image, prompt, seed in ((0, "red apple", 1), (-1, "owl", 7)):
        drawn = emoji.generate(prompt, seed=seed, **settings)
        assert way.images[image].tobytes() == drawn.images[0].tobytes()
        assert (way.first, way.last)[image] == drawn.settings[0]
    assert way.fractions == [0, 0.5, 1]
    assert len({image.tobytes() for image in way.images}) == 3
    assert 80 < way.angle < 100


def test_one_seed_for_both_ends_changes_the_prompt_alone(emoji):
    settings = {"steps": 2, "scheduler": "euler_a", "dim": 64}
    ends = ("(red:1.3) apple", "[owl|cat]")
    way = interpolate_data(emoji, *ends, seeds=[5], frames=2, **settings)
    assert way.angle == 0
    for image, prompt in zip(way.images, ends, strict=True):
        drawn = emoji.generate(prompt, seed=5, **settings)
        assert image.tobytes() == drawn.images[0].tobytes()
    drawn = interpolate_data(emoji, "owl", "owl", frames=2, steps=2, dim=64)
    assert drawn.first.seed == drawn.last.seed
    assert drawn.images[0].tobytes() == drawn.images[1].tobytes()


@pytest.mark.parametrize(
    ("arguments", "value", "rule"),
    [
        ({"frames": 1}, "frames=1", "out of range"),
        ({"seeds": [1, 2, 3]}, "seeds=1,2,3", "more than two"),
        ({"seeds": [-1]}, "seed=-1", "out of range"),
        ({"seeds": [1, 2], "scheduler": "euler_a"}, "scheduler='euler_a'", "noise"),
        ({"steps": 0}, "steps=0", "out of range"),
    ],
)
def test_what_cannot_be_interpolated_is_refused(emoji, arguments, value, rule):
    with raises(UsageError) as caught:
        interpolate_data(emoji, "a", "b", **arguments)
    assert value in str(caught.value)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "frames"),
    [(("red apple", "owl"), 9), (("long " * 40, "longer " * 40), 23), (("$5", "$5"), 2)],
)
def test_no_text_meets_another(emoji, prompts, frames):
    way = interpolate_data(emoji, "a", "b", seeds=[1, 2], frames=2, steps=2, dim=64)
    first, last = (
        replace(s, dim=None, prompt=p) for s, p in zip((way.first, way.last), prompts, strict=True)
    )
    data = replace(
        way,
        first=first,
        last=last,
        fractions=[i / (frames - 1) for i in range(frames)],
        images=[way.images[0]] * frames,
    )
    figure = interpolate_figure(data)
    assert_legible(figure)
    texts = [text for text, *_ in drawn_texts(figure)]
    assert {"0 %", "100 %"} <= set(texts)
