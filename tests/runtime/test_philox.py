"""The numbers of torch's CUDA generator, held against those that others published."""

import hashlib

import pytest
import torch

from sdpipe.runtime.philox import DrawFrom, Philox, philox

# kat_vectors of Random123 (Salmon et al. 2011): philox4x32 10, counter, key, result.
KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1
"""


@pytest.mark.parametrize("line", KNOWN_ANSWERS.strip().split("\n"))
def test_the_known_answers_of_random123(line):
    words = [int(word, 16) for word in line.split()]
    counter = torch.tensor(words[:4]).numpy().astype("uint64")[:, None]
    assert philox(counter, tuple(words[4:6]))[:, 0].tolist() == words[6:]


# SHA-256 of three calls of (1, 4, 64, 64), by A1111's modules/rng_philox.py.
A1111 = {
    0: "a4acb2fcf4d688e9 132025bbc81e837a d76575d5e35b017c",
    42: "df16496e26f1a033 c3471c954ba245e2 cc0e900a3bb67347",
    2**40 + 12345: "0a747813845dff5b 63d6b1d242aa8550 03c299cd267fae7d",
}


@pytest.mark.parametrize("seed", A1111)
def test_the_bits_of_the_generator_of_a1111(seed):
    generator = Philox(seed)
    noises = [generator.randn((1, 4, 64, 64)).numpy().tobytes() for _ in range(3)]
    assert " ".join(hashlib.sha256(noise).hexdigest()[:16] for noise in noises) == A1111[seed]


# What GPUs printed in public: torch.manual_seed(42); torch.randn(4, device="cuda"), three times.
ON_A_GPU = (
    (0.1940, 2.1614, -0.1721, 0.8491),
    (0.1391, -0.1082, -0.7174, 0.7566),
    (-0.5187, 1.2268, 0.6255, -0.9117),
)
# The first and last numbers of some rows of torch.randn((1823, 781), device="cuda").
ROWS_ON_A_GPU = {
    0: (0.1940, 2.1614, -0.1721, -0.8353, -1.6443, 0.1315),
    2: (1.1266, 1.5895, 0.1072, -0.4797, 1.4313, 1.7260),
    9: (-0.2987, 0.1946, 1.1640, -0.2081, -1.0439, 0.7082),
}


def test_what_gpus_printed():
    generator = Philox(42)
    for numbers in ON_A_GPU:
        assert generator.randn((4,)).tolist() == pytest.approx(numbers, abs=6e-5)
    rows = Philox(42).randn((10, 781))
    for row, numbers in ROWS_ON_A_GPU.items():
        ends = torch.cat([rows[row, :3], rows[row, -3:]])
        assert ends.tolist() == pytest.approx(numbers, abs=6e-5)


def test_the_numbers_are_normal():
    x = Philox(7).randn((400_000,)).double()
    for power, moment in enumerate((0, 1, 0, 3), 1):
        assert float((x**power).mean()) == pytest.approx(moment, abs=0.05)


def test_torch_draws_a_batch_from_them_while_the_mode_is_open():
    with DrawFrom([Philox(1), Philox(2)]):
        drawn = torch.randn((2, 3), generator=None, dtype=torch.float16)
    assert torch.equal(drawn, torch.cat([Philox(seed).randn((1, 3)) for seed in (1, 2)]).half())
    with DrawFrom([torch.Generator()]):
        drawn = torch.randn(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, torch.randn(3, generator=torch.Generator().manual_seed(1)))
