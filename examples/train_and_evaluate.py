"""Train matrix factorisation on synthetic data, then evaluate its last checkpoint at other cut-offs.

    python examples/train_and_evaluate.py

Prints one line per epoch and the metrics. Takes about half a minute on two cores, most of it the start of Ray.
"""

from distrec import evaluate, load_config, train

OVERRIDES = [
    "data.planted.users=300",
    "data.planted.items=200",
    "data.planted.interactions=6000",
    "model.dim=16",
    "sampling.negatives=20",
    "optim.lr=0.01",
    "train.workers=1",
    "train.epochs=3",
    "train.batch_size=256",
    "train.device=cpu",
    "tracking.enabled=false",
]


def print_epoch(event: dict) -> None:
    """Print the loss of each epoch."""
    if event["kind"] == "epoch":
        print(f"epoch {event['epoch']}: loss {event['loss']:.4f}, {event['seconds']:.2f} s")


def main() -> None:
    result = train(load_config(overrides=OVERRIDES), name="example", on_event=print_epoch)
    found = evaluate(result.folder, part="test", overrides=["eval.k=5,10,20"])
    print(f"checkpoint after epoch {found.epoch}, {found.users} users")
    for name, value in found.metrics.items():
        print(f"{name:<16} {value:.4f}")


if __name__ == "__main__":
    main()
