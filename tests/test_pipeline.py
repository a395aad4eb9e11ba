import threading

import numpy as np
import pytest
import torch
from support.errors import raises

from sdpipe import NotFiniteError, Pipeline, SdpipeWarning, Step, UsageError
from sdpipe.pipeline import Result
from sdpipe.settings import ResolvedSettings


def pixels(image):
    return np.asarray(image).astype(int)


def test_result_holds_pictures_seeds_and_resolved_settings(emoji):
    result = emoji.generate(["cat", "dog"], n=2, seed=3, steps=2, g=2)
    assert [image.size for image in result.images] == [(128, 128)] * 4
    assert result.seeds == [3, 4, 5, 6]
    assert [s.prompt for s in result.settings] == ["cat", "cat", "dog", "dog"]
    assert result.settings[2] == ResolvedSettings.from_json(result.settings[2].to_json())
    assert result.steps == []


def test_settings_of_one_picture_draw_that_picture_again(emoji):
    result = emoji.generate(["cat", "dog"], seed=3, steps=3, dim=64, batch_invariant=True)
    settings = result.settings[1].to_dict()
    again = emoji.generate(**settings)
    assert again.seeds == [4]
    assert again.images[0].tobytes() == result.images[1].tobytes()


def test_with_save_int_every_step_is_kept(emoji):
    seen = []
    result = emoji.generate("cat", n=2, seed=0, steps=4, save_int=True, on_step=seen.append)
    assert len(result.steps) == len(seen) == 4
    assert all(isinstance(step, Step) for step in result.steps)
    assert result.steps[0].latents.shape == (2, 4, 16, 16)
    expected = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(result.steps[0].input[1:] / 14.6146, expected, atol=1e-3)


def test_stream_yields_the_steps_of_generate(emoji):
    result = emoji.generate("cat", seed=9, steps=3, save_int=True)
    streamed = list(emoji.stream("cat", seed=9, steps=3))
    for a, b in zip(streamed, result.steps, strict=True):
        assert torch.equal(a.latents, b.latents)


def test_stream_refuses_before_its_first_step(emoji):
    with pytest.raises(UsageError, match="steps=0"):
        emoji.stream("cat", steps=0)


@pytest.mark.parametrize("scheduler", ["lms", "euler_a"])
def test_exact_draws_the_same_bits_alone_and_at_any_place_in_a_batch(emoji, scheduler):
    same = {"steps": 3, "g": 3, "scheduler": scheduler, "batch_invariant": True, "save_int": True}
    batch = emoji.generate(["cat", "dog", "cat"], seed=20, **same)
    assert [step.images for step in batch.steps[::3]] == [range(k, k + 1) for k in range(3)]
    for k, prompt in enumerate(["cat", "dog", "cat"]):
        alone = emoji.generate(prompt, seed=20 + k, **same)
        assert alone.images[0].tobytes() == batch.images[k].tobytes()
        for a, b in zip(alone.steps, batch.steps_of(k), strict=True):
            assert torch.equal(a.latents, b.latents)
            assert torch.equal(a.x0, b.x0)


def test_without_exact_a_batch_changes_no_level_by_more_than_two(emoji):
    batch = emoji.generate("red apple", n=3, seed=40, steps=3)
    for k in (0, 2):
        alone = emoji.generate("red apple", seed=40 + k, steps=3)
        assert np.abs(pixels(alone.images[0]) - pixels(batch.images[k])).max() <= 2


def test_two_threads_share_one_pipeline(emoji):
    prompts = ["cat", "red apple"]
    expected = [emoji.generate(p, seed=1, steps=3, dim=64).images[0].tobytes() for p in prompts]
    drawn = [b"", b""]

    def draw(k):
        drawn[k] = emoji.generate(prompts[k], seed=1, steps=3, dim=64).images[0].tobytes()

    threads = [threading.Thread(target=draw, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == expected


def test_the_global_generator_is_left_alone(emoji):
    before = torch.random.get_rng_state()
    emoji.generate("cat", seed=1, steps=3, scheduler="euler_a")
    assert torch.equal(before, torch.random.get_rng_state())


def damaged(emoji, part):
    """The built-in model with one part whose weights are no numbers."""
    module = getattr(emoji.components, part)
    twin = type(module).from_pretrained(emoji.components.model.folder, subfolder=part)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.fill_(float("nan"))
    return Pipeline("emoji", device="cpu", dtype="float32", **{part: twin})


@pytest.mark.parametrize(
    ("part", "stage"), [("unet", "U-Net"), ("text_encoder", "text encoder"), ("vae", "VAE")]
)
def test_a_stage_that_is_not_finite_is_named(emoji, part, stage):
    with pytest.raises(NotFiniteError, match=f"the {stage}"):
        damaged(emoji, part).generate("cat", seed=0, steps=2)


def test_a_solver_that_diverges_is_noticed_with_its_remedy(emoji):
    with pytest.warns(SdpipeWarning, match=r"lms_order 1 \(it was 4\)") as caught:
        emoji.generate("cat", seed=0, g=30, steps=20, dim=64, lms_order=4)
    ours = [warning for warning in caught if warning.category is SdpipeWarning]
    assert [warning.filename for warning in ours] == [__file__]  # the line that called


def test_a_setting_of_another_name_is_refused_with_the_nearest(emoji):
    with pytest.raises(TypeError, match="no setting 'step'; did you mean steps"):
        emoji.generate("cat", step=3)
    with pytest.raises(TypeError, match="no setting 'x'; the settings are"):
        emoji.stream("cat", x=3)


class Crowded:
    """A U-Net on a device with memory for so many pictures with guidance."""

    def __init__(self, unet, most):
        self.unet, self.most, self.batches = unet, most, []
        self.dtype, self.config = unet.dtype, unet.config

    def __call__(self, x, t, text):
        self.batches.append(len(x) // 2)
        if len(x) > 2 * self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.unet(x, t, text)


def test_out_of_memory_the_pictures_come_in_smaller_batches(emoji):
    crowded = Crowded(emoji.components.unet, 2)
    same = {"n": 5, "seed": 40, "steps": 2, "g": 3, "dim": 64}
    with pytest.warns(SdpipeWarning) as told:
        result = emoji.with_parts(unet=crowded).generate("cat", **same)
    assert [str(w.message) for w in told if w.category is SdpipeWarning] == [
        "out of memory for 5 images at once; they are drawn 3 at a time.",
        "out of memory for 3 images at once; they are drawn 2 at a time.",
    ]
    assert result.batch_positions == [(0, 2), (1, 2), (0, 1), (0, 2), (1, 2)]
    assert result.seeds == [40, 41, 42, 43, 44]
    expected = [emoji.generate("cat", **{**same, "n": 1, "seed": 40 + i}) for i in range(5)]
    for image, alone in zip(result.images, expected, strict=True):
        assert np.abs(pixels(image) - pixels(alone.images[0])).max() <= 1


def test_out_of_memory_a_stream_begins_anew_in_smaller_batches(emoji):
    same = {"n": 3, "seed": 40, "steps": 3, "g": 3, "dim": 64}
    steps = emoji.with_parts(unet=Crowded(emoji.components.unet, 2)).stream("cat", **same)
    with pytest.warns(SdpipeWarning, match="out of memory for 3 images"):
        found = list(steps)
    assert [step.images for step in found] == [range(2)] * 3 + [range(2, 3)] * 3
    assert [step.index for step in found] == [0, 1, 2] * 2
    expected = list(emoji.stream("cat", **same))
    for k, step in enumerate(found):
        other = expected[k % 3].latents[step.images.start : step.images.stop]
        assert torch.allclose(step.latents, other, atol=1e-4)


def test_one_picture_that_is_too_large_is_an_error(emoji):
    crowded = emoji.with_parts(unet=Crowded(emoji.components.unet, 0))
    with pytest.raises(torch.OutOfMemoryError):
        list(crowded.stream("cat", steps=2, dim=64, g=3))
    with pytest.raises(torch.OutOfMemoryError):
        crowded.generate("cat", steps=2, dim=64, g=3)


def test_a_batch_is_decoded_before_the_next_begins(emoji):
    images = [s for seed in (1, 2) for s in plan_of(emoji, "cat", seed=seed, batch_invariant=True)]
    seen = []
    for result in emoji.draw(images, on_step=lambda step: seen.append(step.images)):
        seen.append(result.seeds)
    assert seen == [range(1), range(1), [1], range(1, 2), range(1, 2), [2]]


def test_a_run_takes_images_of_different_settings(emoji):
    images = [
        *plan_of(emoji, "cat", seed=1),
        *plan_of(emoji, "dog", seed=2, scheduler="ddim"),
        *plan_of(emoji, "owl", seed=3, seamless="x"),
    ]
    drawn = Result.join(list(emoji.draw(images)))
    assert drawn.settings == images
    for settings, image in zip(images, drawn.images, strict=True):
        alone = emoji.generate(**settings.to_dict())
        assert alone.images[0].tobytes() == image.tobytes()


def test_a_pipeline_is_made_of_loaded_components(emoji):
    same = {"seed": 1, "steps": 2, "dim": 64}
    pipe = Pipeline.from_components(emoji.components)
    assert (
        pipe.generate("cat", **same).images[0].tobytes()
        == emoji.generate("cat", **same).images[0].tobytes()
    )
    with pytest.raises(UsageError):
        Pipeline.from_components(emoji.components, speed=False, compile=True)


def test_a_prompt_that_is_no_text_is_refused(emoji):
    with raises(UsageError, "prompt=None"):
        emoji.generate(None)


def test_with_parts_shares_what_is_not_replaced(emoji):
    other = emoji.with_parts(unet=emoji.components.unet)
    assert other is not emoji
    assert other.components.vae is emoji.components.vae
    assert other.components.model == emoji.components.model
    with pytest.raises(TypeError, match="no part 'scheduler'"):
        emoji.with_parts(scheduler=None)


def plan_of(pipe, prompt, **settings):
    return pipe.plan(prompt, **{"steps": 2, "dim": 64, **settings})[0]
