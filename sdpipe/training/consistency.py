"""Consistency distillation: a U-Net learns to draw in a few steps, without guidance.

The guided sampler follows a path from noise x_T to an image x_0. A consistency function maps every
point of the path to its end (Song et al. 2023):

    f(x_t, t) = c_skip(t) x_t + c_out(t) x0_theta(x_t, t),    f(x_0, 0) = x_0

The teacher is the model as it is, under guidance of scale g, which the student learns with all else
(Meng et al. 2023). It goes the whole path in steps of DPM-Solver++ (2M); the student is asked at
the timesteps at which the LCM sampler will ask it (Luo et al. 2023):

    repeat
        c ~ captions, x_T ~ N(0, I)
        x_T -> ... -> x_0                    the teacher, several guided steps in each interval
        take a gradient step on
            sum over the sampler's timesteps t of huber(f(x_t, t), x_0)
    until converged

Luo et al. compare f at two points near each other instead, so that a target is the student's own
guess and costs one step of the teacher. Here the target is the end of the path itself: all points
of it have the same, so it costs little more, and it is right from the first step on. Images are not
needed: captions are.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sdpipe.components import Components
from sdpipe.denoise import denoise, predict_x0
from sdpipe.guidance import Guidance
from sdpipe.io.files import atomic_write
from sdpipe.runtime.modules import copy_sharing_weights
from sdpipe.schedule import alpha_bars, make_scheduler
from sdpipe.settings import DEFAULTS
from sdpipe.training.adapter import Adapter, add_adapters, lora_tensors
from sdpipe.training.dataset import Dataset, draw_captions, tokenize
from sdpipe.training.recipe import ConsistencyStage
from sdpipe.training.run_folder import RESUME
from sdpipe.training.stages import Run
from sdpipe.values import check_scale

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
HUBER_C = 1e-3


def boundary_scalings(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out at timesteps t, (B,): 1 and 0 at t = 0, near to 0 and 1 soon after.

    Song et al. (2023), equation 25 of appendix C, with the constants of diffusers' LCMScheduler.
    """
    scaled = t * TIMESTEP_SCALING
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


def pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    """sqrt((x - y)^2 + c^2) - c, its mean: nearly the absolute error, smooth at 0."""
    return ((x - y).square() + HUBER_C**2).sqrt().mean() - HUBER_C


def path_timesteps(student: list[int], solver_steps: int) -> list[int]:
    """The teacher's timesteps: so many in each interval of the student's, the first its start."""
    pairs = zip(student, [*student[1:], 0], strict=True)
    return [round(a + (b - a) * i / solver_steps) for a, b in pairs for i in range(solver_steps)]


class ConsistencyLoss(nn.Module):
    """The pseudo-Huber distance between f(x_t, t) and x_0. Only the adapters learn."""

    sigmas: Tensor  # (T,)

    def __init__(self, model: Components, adapters: dict[str, Adapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({k.replace(".", "_"): v for k, v in adapters.items()})
        self.frozen = (model.unet,)  # a tuple: its weights are no part of the checkpoints
        self.prediction_type = str(model.scheduler_config.get("prediction_type", "epsilon"))
        alpha_bar = alpha_bars(model.scheduler_config)
        self.register_buffer("sigmas", (1 / alpha_bar - 1).sqrt(), persistent=False)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The student: the model's U-Net with the adapters."""
        return self.frozen[0]

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, x_0: Tensor) -> Tensor:
        """`x_t` and `x_0` are (B, C, h, w), `t` (B,) in 0 ... T - 1, `text` (B, L, D)."""
        return pseudo_huber(self.predict(x_t, t, text), x_0)

    def predict(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """f(x_t, t), (B, C, h, w)."""
        output = self.unet(x_t, t, text).sample.float()
        x0 = predict_x0(x_t, output, self.sigmas[t].view(-1, 1, 1, 1), self.prediction_type)
        c_skip, c_out = (c.view(-1, 1, 1, 1) for c in boundary_scalings(t))
        return c_skip * x_t + c_out * x0


class Teacher:
    """The model as it is, which follows whole paths under guidance.

    timesteps: the student's K, which are those of the LCM sampler.
    """

    def __init__(self, model: Components, stage: ConsistencyStage) -> None:
        self.model, self.solver_steps = model, stage.solver_steps
        self.unet = copy_sharing_weights(model.unet)
        self.guidance = Guidance(check_scale("g", model.defaults.get("g", DEFAULTS["g"])))
        lcm = make_scheduler("lcm", model.scheduler_config, stage.sampler_steps)
        self.timesteps: list[int] = lcm.timesteps.tolist()

    def follow(self, x_t: Tensor, cond: Tensor, uncond: Tensor) -> tuple[Tensor, Tensor]:
        """Follows the paths from noise (B, C, h, w): the points (B, K, C, h, w) at the student's
        timesteps, and the ends (B, C, h, w).
        """
        times = path_timesteps(self.timesteps, self.solver_steps)
        solver = make_scheduler("dpm++", self.model.scheduler_config, len(times))
        solver.set_timesteps(timesteps=times, device=x_t.device)
        steps = list(denoise(self.unet, solver, x_t, cond, uncond, self.guidance))
        points = [step.input for step in steps[:: self.solver_steps]]
        return torch.stack(points, 1), steps[-1].latents


def draw_paths(
    run: Run, dataset: Dataset, teacher: Teacher, stage: ConsistencyStage
) -> dict[str, Tensor]:
    """Has the teacher follow `stage.paths` paths, with random captions of a dataset.

    Returns points (N, K, C, h, w), ends (N, C, h, w) and text (N, L, D), in float32 on the CPU.
    They are kept in files of a batch each: a run that was stopped goes on with the next.
    """
    model, batches = run.model, []
    channels, size = model.unet.config.in_channels, model.unet.config.sample_size
    uncond = encode_tokens(model, tokenize([""], model.tokenizer))
    for first in range(0, stage.paths, stage.batch_size):
        path = run.folder / f"paths-{first:06}.safetensors"
        if run.accelerator.is_main_process and not path.exists():
            count = min(stage.batch_size, stage.paths - first)
            rng, generator = run.rng.at(-1 - first)
            chosen = torch.randint(len(dataset), (count,), generator=generator).tolist()
            tokens, _ = draw_captions(dataset, chosen, model.tokenizer, stage, rng, generator)
            x_t = torch.randn((count, channels, size, size), generator=generator)
            text = encode_tokens(model, tokens)
            with run.accelerator.autocast():
                points, ends = teacher.follow(
                    x_t.to(text.device), text, uncond.expand(count, -1, -1)
                )
            tensors = {"points": points, "ends": ends, "text": text}
            with atomic_write(path, RESUME) as file:
                file.write(save({k: v.float().cpu().contiguous() for k, v in tensors.items()}))
            run.progress("drawing the teacher's paths", first + count, stage.paths)
        run.accelerator.wait_for_everyone()
        batches.append(load_file(path))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@torch.no_grad()
def encode_tokens(model: Components, tokens: Tensor) -> Tensor:
    """The embeddings of captions (B, L), (B, L, D)."""
    return model.text_encoder(tokens.to(model.text_encoder.device)).last_hidden_state


def distill(
    run: Run, dataset: Dataset, stage: ConsistencyStage
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Distils the model of a run; returns the tensors of its LoRA, and the settings to draw with.

    The captions are the dataset's; its images are not looked at.
    """
    model = run.model
    model.unet.requires_grad_(False)
    teacher = Teacher(model, stage)
    paths = draw_paths(run, dataset, teacher, stage)
    torch.manual_seed(stage.seed)
    adapters = add_adapters(model.unet, stage.rank)
    timesteps = torch.tensor(teacher.timesteps)

    def batch(step: int) -> tuple[Tensor, ...]:
        _, generator = run.rng.at(step)
        count = (run.local_batch(stage.batch_size),)
        i = torch.randint(len(paths["ends"]), count, generator=generator)
        k = torch.randint(len(timesteps), count, generator=generator)
        return paths["points"][i, k], timesteps[k], paths["text"][i], paths["ends"][i]

    positions = paths["ends"][0, 0].numel()
    run.fit("consistency", ConsistencyLoss(model, adapters), batch, positions, **stage.options)
    return lora_tensors(adapters), {"g": 1.0, "steps": stage.sampler_steps, "scheduler": "lcm"}
