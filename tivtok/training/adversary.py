"""The adversarial half of training: what the discriminator tells the model, and its own steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW

from tivtok.training.config import AdversarialConfig, TrainConfig
from tivtok.training.diffaug import STRONG_CUTOUT, augment
from tivtok.training.discriminator import DinoFeatures, Heads, Lecam, hinge


class Adversary:
    """Discriminator, its optimizer and LeCAM, the same on every process.

    Gradients are averaged here, since accelerate's wrapper takes only one model under FSDP.
    """

    def __init__(self, features: DinoFeatures, config: TrainConfig, accelerator: Accelerator) -> None:
        assert config.adversarial is not None
        self.config: AdversarialConfig = config.adversarial
        self.gradient_clip = config.gradient_clip
        self.accelerator = accelerator
        self.features = features.to(accelerator.device)
        self.heads = Heads(features.channels).to(accelerator.device)
        self.optimizer = AdamW(
            self.heads.parameters(), self.config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.lecam = Lecam(self.config.lecam_decay, accelerator.device)

    def loss(self, video: Tensor, draws: Tensor) -> Tensor:
        """The model's: minus the mean logit of its reconstruction.

        Args:
            video: (B, 3, F, H, W) in [-1, 1].
            draws: (B, NUM_DRAWS) random numbers for `augment`.
        """
        self.heads.eval()  # spectral norm iterates in the discriminator's own steps only
        return -self._logits(video, draws).mean()

    def step(self, real: Tensor, fake: Tensor, draws: Tensor, again: Tensor, rate: float) -> dict[str, float] | None:
        """One step of the discriminator.

        Args:
            real, fake: (B, 3, F, H, W).
            draws, again: (2 B, NUM_DRAWS) for `augment`, the latter for the second time that `consistency` takes.
            rate: fraction of the peak learning rate.

        Returns:
            What to log, over all processes; None where loss or gradient are not finite: then nothing has changed but
            spectral norm's own iterates.
        """
        self.heads.train()
        both = torch.cat([real, fake])
        logits = self._logits(both, draws)
        real_logits, fake_logits = logits.tensor_split(2)
        loss = hinge(real_logits, fake_logits)
        terms = {}
        if self.config.consistency:
            terms["consistency"] = F.mse_loss(self._logits(both, again, strong=True), logits)
        penalty = self.lecam.penalty(real_logits, fake_logits)
        (loss + self.config.lecam * penalty + self.config.consistency * sum(terms.values())).backward()
        norm = self._average_and_clip()
        terms = {"logits_real": real_logits.mean(), "logits_fake": fake_logits.mean(), "discriminator": loss} | terms
        terms["lecam"] = penalty
        stats = torch.stack(list(terms.values())).detach()
        stats = self.accelerator.reduce(stats, "mean")
        good = bool(torch.isfinite(stats.sum() + norm))
        if good:
            self.optimizer.param_groups[0]["lr"] = rate * self.config.learning_rate
            self.optimizer.step()
            self.lecam.update(stats[:2])
        self.optimizer.zero_grad()
        if not good:
            return None
        return dict(zip(terms, stats.tolist(), strict=True)) | {"discriminator_gradient_norm": float(norm)}

    def _logits(self, video: Tensor, draws: Tensor, strong: bool = False) -> Tensor:
        """(B, frames * logits per frame) float32, of augmented frames; ``strong``: by all policies."""
        batch = video.shape[0]
        how = (1.0, STRONG_CUTOUT) if strong else (self.config.augment, self.config.cutout)
        frames = augment(video, draws, *how).transpose(1, 2).flatten(0, 1)
        return self.heads(self.features(frames)).float().view(batch, -1)

    def _average_and_clip(self) -> Tensor:
        """Average the gradients over the processes, clip them, and return their norm from before that."""
        parameters = [p for p in self.heads.parameters() if p.grad is not None]
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        flat = self.accelerator.reduce(flat, "mean")
        for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = gradient.view_as(p)
        return torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
