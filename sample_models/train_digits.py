"""Train the digits model and write `digits.pt`, `digits_inputs/*.npz` and `digits_test.npz` beside this file.

Needs PyTorch and scikit-learn, takes well under a minute on one CPU core, downloads nothing.
The same versions on the same kind of machine give the same files, bit for bit.
"""

import time
from pathlib import Path

import numpy as np
import torch
from digits import Digits, digits
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SEED = 0
EPOCHS = 40
BATCH = 64
FULL_SCALE = 4095  # 12-bit sensor
SAMPLES, SAMPLE_BATCH = 8, 4


def photograph(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn images of 0..16 into sensor counts: an exposure per shot, a dark level, noise, whole numbers."""
    exposure = np.exp(rng.uniform(np.log(1 / 3), 0.0, size=(len(ink), 1, 1, 1)))
    light = ink.reshape(-1, 1, 8, 8) / 16 * 0.95 * FULL_SCALE * exposure
    noise = rng.normal(size=light.shape) * np.sqrt(20.0**2 + light)  # read noise and shot noise
    return np.rint(np.clip(light + 64 + noise, 0, FULL_SCALE)).astype(np.float32)


def train(images: Tensor, labels: Tensor) -> Digits:
    """Fit with Adam, one cycle of the learning rate, images moved by at most one pixel."""
    torch.manual_seed(SEED)
    model = digits().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            shift = torch.randint(-1, 2, (2,)).tolist()
            loss = loss_of(model.logits(images[batch].roll(shift, dims=(2, 3))), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def accuracy(model: Digits, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        return (model(images).argmax(dim=1) == labels).float().mean().item()


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    rng = np.random.default_rng(SEED)
    ink, labels = load_digits(return_X_y=True)
    train_ink, test_ink, train_labels, test_labels = train_test_split(
        ink, labels, test_size=0.3, random_state=SEED, stratify=labels
    )
    train_images, test_images = photograph(train_ink, rng), photograph(test_ink, rng)

    started = time.perf_counter()
    model = train(torch.from_numpy(train_images), torch.from_numpy(train_labels))
    seconds = time.perf_counter() - started

    torch.save(model.state_dict(), HERE / "digits.pt")
    samples = HERE / "digits_inputs"
    samples.mkdir(exist_ok=True)
    chosen = rng.choice(len(train_images), size=(SAMPLES, SAMPLE_BATCH), replace=False)
    for number, indices in enumerate(chosen):
        np.savez_compressed(samples / f"{number}.npz", image=train_images[indices])
    np.savez_compressed(HERE / "digits_test.npz", image=test_images, label=test_labels.astype(np.int64))

    for name, images, truth in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        share = accuracy(model, torch.from_numpy(images), torch.from_numpy(truth))
        print(f"{name}: {len(images)} images, {share:.2%} right in FP32")
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    main()
