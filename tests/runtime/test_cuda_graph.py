"""CUDA graphs: which shapes are kept, one thread at a time; on a GPU, the same bits."""

import threading

import pytest
import torch

from sdpipe import Pipeline
from sdpipe.runtime.cuda_graph import CUDAGraphUNet


class Recorder:
    """Records calls of a U-Net without a GPU: the recording computes with the U-Net itself."""

    def __init__(self):
        self.made, self.running, self.most_running = 0, 0, 0

    def __call__(self, unet, inputs):
        self.made += 1
        shapes = [value.shape for value in inputs]

        def replay(inputs):
            assert [value.shape for value in inputs] == shapes
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                return unet(*inputs).sample
            finally:
                self.running -= 1

        return replay


@torch.no_grad()
def call(unet, batch, width):
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 4, 16, 16, generator=generator)
    prompt_embeds = torch.randn(batch, 48, width, generator=generator)
    return unet(x, torch.tensor(7.0), prompt_embeds).sample


def test_the_recordings_of_two_shapes_are_kept(emoji):
    unet, recorder = emoji.components.unet, Recorder()
    graphed = CUDAGraphUNet(unet, record=recorder)
    assert graphed.dtype == torch.float32
    for batches, made in (((2, 1, 2, 1, 2), 2), ((3, 1, 3), 3), ((2,), 4)):  # 3 takes 2's place
        for batch in batches:
            width = unet.config.cross_attention_dim
            assert torch.equal(call(graphed, batch, width), call(unet, batch, width))
        assert recorder.made == made


def test_a_recording_is_replayed_by_one_thread_at_a_time(emoji):
    unet, recorder = emoji.components.unet, Recorder()
    graphed = CUDAGraphUNet(unet, record=recorder)

    def replay():
        for _ in range(3):
            call(graphed, 1, unet.config.cross_attention_dim)

    threads = [threading.Thread(target=replay) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.made == 1
    assert recorder.most_running == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_draws_the_same_bits_and_never_waits():
    plain = Pipeline("emoji", device="cuda", speed=False)
    graphed = Pipeline("emoji", device="cuda")
    for g in (1, 5):
        expected = list(plain.stream("red apple", seed=3, steps=8, g=g))
        steps = graphed.stream("red apple", seed=3, steps=8, g=g)
        found = [next(steps)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            found += steps
        finally:
            torch.cuda.set_sync_debug_mode("default")
        pairs = zip(expected, found, strict=True)
        assert all(torch.allclose(a.latents, b.latents, atol=2e-2) for a, b in pairs)
        again = [step.latents for step in graphed.stream("red apple", seed=3, steps=8, g=g)]
        assert all(torch.equal(a.latents, b) for a, b in zip(found, again, strict=True))
