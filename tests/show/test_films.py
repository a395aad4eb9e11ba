import io
import random
from dataclasses import replace

import pytest
from PIL import Image, ImageChops, ImageStat

from sdpipe.latents import latents_to_pil
from sdpipe.settings import Settings
from sdpipe.show.animation import TICK, Film, encode_gif, encode_mp4
from sdpipe.show.films import HOLD, MOST, interpolation_film, steps_film
from sdpipe.show.filmstrip import Column, spread_states, title_lines
from sdpipe.show.interpolate import Interpolation
from sdpipe.show.steps import steps_data

pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")

SETTINGS = Settings(prompt="red apple", seed=1).resolved({"width": 64, "height": 64})


def plain(*size, seed=0):
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3))


def way(images):
    fractions = [i / (len(images) - 1) for i in range(len(images))]
    other = replace(SETTINGS, dim=None, prompt="green apple " * 20)
    return Interpolation(SETTINGS, other, fractions, 90.0, images)


@pytest.fixture(scope="module")
def film():
    images = [plain(64, 64, seed=i).resize((64, 64)) for i in range(5)]
    return steps_film([Column(i, 9.0 - i, p, p) for i, p in enumerate(images)])


def read_gif(data):
    with Image.open(io.BytesIO(data)) as image:
        frames, times = [], []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(image.convert("RGB"))
            times.append(image.info["duration"])
        return frames, times, image.info["loop"]


def test_a_gif_has_all_frames_as_long_as_they_stay_and_goes_round(film):
    frames, times, loop = read_gif(encode_gif(film))
    assert len(frames) == len(film.frames) == 5
    assert times == film.milliseconds == [200, 200, 200, 200, HOLD]
    assert loop == 0
    for shown, frame in zip(frames, film.frames, strict=True):
        assert shown.size == frame.size
        assert shown.getpixel((1, 1)) == (255, 255, 255)


def test_the_paper_of_a_gif_is_white_also_beside_what_is_nearly():
    light = plain(64, 64).point(lambda level: 243 + level // 22)
    frames, *_ = read_gif(encode_gif(steps_film([Column(i, 1.0, light, light) for i in range(2)])))
    for frame in frames:
        assert frame.crop((0, 0, frame.width, 18)).getextrema() == ((255, 255),) * 3


def test_the_colours_of_a_gif_are_those_of_its_frames():
    gradient = Image.linear_gradient("L").resize((200, 200))
    image = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    film = Film([image, image.rotate(180)], [200, 400])
    frames, times, _ = read_gif(encode_gif(film))
    assert times == [200, 400]
    for shown, frame in zip(frames, film.frames, strict=True):
        assert max(ImageStat.Stat(ImageChops.difference(shown, frame)).rms) < 12
        blurred = (image.reduce(8) for image in (shown, frame))
        assert max(ImageStat.Stat(ImageChops.difference(*blurred)).rms) < 4


def test_an_mp4_lasts_as_long_and_shows_the_same(film):
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(encode_mp4(film))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert len(frames) * TICK == sum(film.milliseconds)
    assert frames[0].size == film.frames[0].size
    for shown, frame in ((frames[0], film.frames[0]), (frames[-1], film.frames[-1])):
        blurred = (image.convert("RGB").reduce(8) for image in (shown, frame))
        assert max(ImageStat.Stat(ImageChops.difference(*blurred)).rms) < 12


@pytest.mark.parametrize("size", [(128, 128), (512, 512), (96, 32), (8, 8), (33, 65), (640, 64)])
def test_frames_are_of_one_size_with_even_sides(size):
    films = [
        steps_film([Column(i, 3.0, plain(*size), plain(*size)) for i in range(3)]),
        interpolation_film(way([plain(*size)] * 3)),
    ]
    for film in films:
        (width, height), *others = {frame.size for frame in film.frames}
        assert not others
        assert width % 2 == height % 2 == 0
        assert 300 < width < 900
        assert all(time % TICK == 0 for time in film.milliseconds)


def test_a_way_goes_there_and_back_and_stays_at_both_ends():
    images = [Image.new("RGB", (64, 64), (i * 50, 0, 0)) for i in range(4)]
    film = interpolation_film(way(images))
    shown = [frame.getpixel((frame.width // 2, 40))[0] // 50 for frame in film.frames]
    assert shown == [0, 1, 2, 3, 2, 1]
    assert film.milliseconds == [HOLD, 200, 200, HOLD, 200, 200]
    assert len(interpolation_film(way(images[:2])).frames) == 2


def test_many_frames_pass_faster():
    film = interpolation_film(way([Image.new("RGB", (8, 8))] * 40))
    assert film.milliseconds == [HOLD, *[120] * 38, HOLD, *[120] * 38]


def test_a_course_shows_what_save_int_keeps(emoji):
    data = steps_data(emoji, "red apple", seed=3, steps=12, dim=64)
    numbers = data.to_dict()
    steps = data.result.steps
    assert numbers["timestep"] == [step.timestep for step in steps]
    assert numbers["sigma"][0] == steps[0].sigma
    assert numbers["sigma"][-1] == 0
    assert len(numbers["x_t_std"]) == 13
    assert numbers["x_t_std"][0] == pytest.approx(steps[0].sigma, rel=0.1)
    assert [column.step for column in data.columns(MOST)] == list(range(13))
    assert [column.step for column in data.columns(9)] == spread_states(12)
    last = latents_to_pil(emoji.components.vae, steps[-1].latents)[0]
    apart = ImageChops.difference(data.columns(2)[-1].x_t, last)  # one is decoded in a batch
    assert max(high for _, high in apart.getextrema()) <= 1
    assert last.tobytes() == data.result.images[0].tobytes()
    assert title_lines(data.result.settings[0])[0] == "red apple"
