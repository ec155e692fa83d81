"""Layer drop on several ranks; its own file, as the processes import little, and run once."""

import time

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from regain import LayerDrop


def layer_drop_on_a_rank(rank, meeting, results):
    """Write which calls skipped the layer, and which parameters have a gradient."""
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.manual_seed(100 + rank)
    torch.rand(rank)  # The ranks are nowhere alike.
    x = torch.randn(2, 3)
    layers = [LayerDrop(nn.Linear(3, 3), 0.5) for _ in range(2)]
    choices = [[torch.equal(layer(x), x) for layer in layers] for _ in range(50)]

    model = DistributedDataParallel(nn.Sequential(nn.Linear(3, 3), LayerDrop(nn.Linear(3, 3), 0.5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    complete, skipped = True, []
    for _ in range(12):
        optimizer.zero_grad()
        y = model(x)
        y.square().sum().backward()
        gradients = [weight.grad for weight in model.parameters()]
        complete = complete and all(gradient is not None for gradient in gradients)
        skipped.append(not gradients[-1].any())
        optimizer.step()
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    torch.save((choices, complete, skipped, weights), f"{results}/{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_skip_the_same_layers_and_train_on(tmp_path):
    context = torch.multiprocessing.spawn(
        layer_drop_on_a_rank,
        (f"file://{tmp_path}/meeting", str(tmp_path)),
        nprocs=2,
        join=False,
    )
    try:
        # A busy machine takes long to start two processes.
        end = time.monotonic() + 240
        while not context.join(timeout=1):
            assert time.monotonic() < end, "the ranks wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    (choices, complete, skipped, weights), other = (
        torch.load(tmp_path / f"{r}.pt") for r in (0, 1)
    )
    assert choices == other[0]
    # Some calls are skipped, and the layers differ.
    assert 15 < sum(first for first, _ in choices) < 35
    assert 15 < sum(first == second for first, second in choices) < 35
    assert complete
    assert other[1]
    assert set(skipped) == {True, False}
    assert skipped == other[2]
    assert torch.equal(weights, other[3])
