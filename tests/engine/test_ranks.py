"""Two processes at one training against one process: the same losses, tensors, predictions, decisions and errors."""

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, write_shapes

from glip_adapt.core.settings import FitConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.engine import learners, selection
from glip_adapt.engine import ranks as ranks_module
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import predict_split
from glip_adapt.engine.fold_files import FoldFiles
from glip_adapt.engine.optimise import NonFiniteLossError
from glip_adapt.engine.ranks import Ranks, RanksError, current, joined
from glip_adapt.engine.selection import cross_validate, train_candidate
from glip_adapt.engine.train import train_model
from glip_adapt.trunks.catalogue import Trunk, load_tokenizer
from glip_adapt.trunks.glip.build import build_glip

CLASSES = ("red box", "blue box")
CONFIG = FitConfig(
    short_sides=(48, 64), test_short_side=64, batch_size=4, max_steps=5, learning_rate=1e-2, schedule="cosine", seed=3
)
SOON = 20.0  # seconds within which both processes must have ended; a collective would wait for half an hour
# One process imports everything, and the ranks are its forks: this one may have used autograd, which does not survive.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["glip_adapt.engine.selection", "glip_adapt.trunks.glip.build", "peft"])


class Pair:
    """Two processes that are joined and do what they are told, both the same."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.ends, self.children = [], []
        for rank in range(2):
            mine, theirs = SERVER.Pipe()
            self.children.append(SERVER.Process(target=serve, args=(theirs, rank, port), daemon=True))
            self.children[-1].start()
            theirs.close()  # so that the end of the process is noticed
            self.ends.append(mine)

    def __call__(self, work, *arguments):
        """Return what each rank returns, or the error that it raised."""
        for end in self.ends:
            end.send((work, arguments))
        assert all(end.poll(120) for end in self.ends)
        return [end.recv() for end in self.ends]

    def close(self):
        for end in self.ends:
            end.close()
        for child in self.children:
            child.join(SOON)
            child.kill()


def serve(end, rank, port):
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    with joined() as ranks:
        while True:
            try:
                work, arguments = end.recv()
            except EOFError:
                return
            try:
                end.send(work(ranks, *arguments))
            except Exception as error:
                end.send(error)


@pytest.fixture(scope="module")
def pair():
    two = Pair()
    yield two
    two.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("ranks") / "shapes")


def build(method, dtype=torch.float64, dropout=0.0):
    """A model of random weights, the same in every process; the network is so small that images go together."""
    torch.manual_seed(0)
    network = build_glip(replace(TINY, fusion_dropout=dropout))
    with torch.no_grad():
        network.head.bias0.fill_(0.0)  # else everything scores near the prior
    for module in network.modules():  # BERT has its own
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    network = network.requires_grad_(False).to(dtype)
    return attach(Trunk("glip-nano", network, load_tokenizer("glip-nano"), "made up"), method, classes=CLASSES)


def bits(model):
    return {name: tensor.detach().numpy().tobytes() for name, tensor in model.owned_tensors().items()}


def trained(ranks, folder, method, config, with_val=False, dropout=0.0):
    """Train, and return the steps, the validations, why it ended, and the bits of the owned tensors."""
    data, model = load_dataset(str(folder)), build(method, dropout=dropout)
    if ranks.rank == 1:  # rank 0 decides where to start
        model.load_owned({name: tensor + 1 for name, tensor in model.copy_owned().items()})
    history = train_model(model, data.train, data.val if with_val else None, config)
    return history.steps, history.validations, history.stopped_by, bits(model)


def close(one, other, limit=1e-6):
    """Check that two trainings took the same steps up to rounding."""
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine.losses == pytest.approx(theirs.losses, rel=limit, abs=limit)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=limit)
        assert mine.learning_rate == theirs.learning_rate
    assert [(v.step, v.is_best) for v in one[1]] == [(v.step, v.is_best) for v in other[1]]
    assert [v.ap for v in one[1]] == pytest.approx([v.ap for v in other[1]], abs=limit)
    assert one[2] == other[2]


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt", "lora", "full", "exemplars"])
@pytest.mark.parametrize("batch_size", [4, 3, 1], ids=["even", "uneven", "fewer images than ranks"])
def test_the_loss_curve_of_two_processes_is_that_of_one(pair, folder, method, batch_size):
    config = replace(CONFIG, batch_size=batch_size)
    first, second = pair(trained, folder, method, config)
    alone = trained(Ranks(), folder, method, config)
    assert len({round(step.loss, 5) for step in alone[0]}) == 5  # it moves
    assert first[3] == second[3]
    assert [(s.losses, s.gradient_norm) for s in first[0]] == [(s.losses, s.gradient_norm) for s in second[0]]
    close(first, alone)


def test_validations_lead_to_the_same_decisions(pair, folder):
    """The plateau rule, the best state and patience follow the AP, which rank 0 states."""
    config = replace(CONFIG, schedule="plateau", validate_every=1, plateau_patience=0, stop_patience=2, max_steps=9)
    first, second = pair(trained, folder, "linear_probe", config, True)
    assert first[1:] == second[1:]
    close(first, trained(Ranks(), folder, "linear_probe", config, True))


def test_dropout_draws_other_numbers_on_each_rank_and_the_tensors_stay_equal(pair, folder):
    first, second = pair(trained, folder, "full", CONFIG, False, 0.5)
    assert first[3] == second[3]
    numbers = pair(drawn, folder)
    assert numbers[0] != numbers[1]


def drawn(ranks, folder):
    """Return what torch draws inside a training."""
    seen = []
    config = replace(CONFIG, max_steps=1)
    model, data = build("prompt"), load_dataset(str(folder))
    train_model(model, data.train, None, config, on_step=lambda *_: seen.append(torch.rand(()).item()))
    return seen


def test_a_gradient_that_no_rank_has_stays_none_and_others_add_up(pair):
    for found in pair(summed):
        assert found == [[3.0, 3.0], [10.0], [20.0], None]


def summed(ranks):
    both, mine, others, unused = (torch.zeros(n, dtype=d) for n, d in ((2, torch.float32), *[(1, torch.float64)] * 3))
    both.grad = torch.full((2,), 1.0 + ranks.rank)
    if ranks.rank == 0:
        mine.grad = torch.full((1,), 10.0, dtype=torch.float64)
    else:
        others.grad = torch.full((1,), 20.0, dtype=torch.float64)
    ranks.sum_gradients([both, mine, others, unused])
    return [None if t.grad is None else t.grad.tolist() for t in (both, mine, others, unused)]


# Cross-validation and predictions ------------------------------------------------------------------------------------


def chosen(ranks, folder, kept):
    data, model, cache = load_dataset(str(folder)), build("linear_probe"), FeatureCache()
    files = FoldFiles(kept / f"{ranks.rank}") if kept else None
    if ranks.rank == 1:
        model.load_owned({name: tensor + 1 for name, tensor in model.copy_owned().items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "SHARES", (0.5, 1.0))
        patch.setattr(selection, "FACTORS", (0.5, 1.0))
        found = cross_validate(model, data.train, CONFIG, kept=files, cache=cache)
    history = train_candidate(model, data.train, found, CONFIG, cache=cache)
    return found, len(history.steps), bits(model), cache.statistics.misses


def test_cross_validation_is_that_of_one_process(pair, folder, tmp_path):
    first, second = pair(chosen, folder, tmp_path)
    again = pair(chosen, folder, tmp_path)
    alone = chosen(Ranks(), folder, None)
    assert first[:3] == second[:3]
    assert len(set(first[0].scores.values())) > 2
    assert first[0].scores == pytest.approx(alone[0].scores, abs=1e-3)
    assert first[0].chosen == alone[0].chosen
    assert [entry["image_id"] for entry in first[0].held_out] == [entry["image_id"] for entry in alone[0].held_out]
    assert len(list((tmp_path / "0").glob("*.json"))) == 3
    assert not (tmp_path / "1").exists()  # rank 0 writes for all, and reads for all
    assert again[0][:3] == again[1][:3] == first[:3]
    assert again[1][3] < second[3] < alone[3]  # images that went through the frozen stages


def predicted(ranks, folder):
    model, seen = build("zero_shot", torch.float32), []
    found = predict_split(model, load_dataset(str(folder)).train, on_image=lambda *done: seen.append(done))
    return found, seen


def test_predictions_are_those_of_one_process_in_its_order(pair, folder, monkeypatch):
    first, second = pair(predicted_one_by_one, folder)
    monkeypatch.setattr("glip_adapt.engine.batches.BATCH_PIXELS", 1)
    alone, seen = predicted(Ranks(), folder)
    assert len(alone) > 20
    assert first[0] == second[0] == alone
    assert seen == [(n, 6) for n in range(1, 7)]
    assert first[1] == [(2, 6), (4, 6), (6, 6)]


def predicted_one_by_one(ranks, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glip_adapt.engine.batches.BATCH_PIXELS", 1)
        return predicted(ranks, folder)


def test_shares_are_gathered_in_order_whatever_their_number(pair):
    for found in pair(gathered):
        assert found == [list(map(str, range(count))) for count in range(7)]


def gathered(ranks):
    return [ranks.gather([str(item) for item in ranks.share(range(count))]) for count in range(7)]


def test_rank_0_decides_and_works_for_all(pair):
    for rank, found in enumerate(pair(asked)):
        assert found == (0, [0] if rank == 0 else [], (0, 1))


def asked(ranks):
    worked = []
    within = ranks.first(lambda: worked.append(ranks.rank) or (current().rank, current().count))
    return ranks.agreed(ranks.rank), worked, within


# Errors --------------------------------------------------------------------------------------------------------------


def spoiled(ranks, folder):
    """Train with a loss that is not finite on rank 1 from step 3 on."""
    model, done = build("prompt"), []
    losses = learners.losses_of

    def spoil(model, features, batch, ranks):
        for what, part in losses(model, features, batch, ranks):
            is_bad = ranks.rank == 1 and len(done) == 2
            yield what, {name: loss * float("inf") if is_bad else loss for name, loss in part.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learners, "losses_of", spoil)
        try:
            train_model(model, load_dataset(str(folder)).train, None, CONFIG, on_step=lambda *_: done.append(1))
        except NonFiniteLossError as error:
            return str(error), ranks_module.is_told(error), len(done), bits(model)


def test_a_loss_that_is_not_finite_on_one_rank_ends_both_with_its_sentence(pair, folder):
    started = time.monotonic()
    (message, *first), (same, *second) = pair(spoiled, folder)
    assert time.monotonic() - started < SOON
    assert "not finite in step 3" in message
    assert message == same
    assert first == second
    assert first[:2] == [True, 2]
    assert pair(gathered)[0][2] == ["0", "1"]  # they are in step still


@pytest.mark.parametrize("is_training", [True, False])
def test_an_image_that_one_rank_cannot_read_ends_both(pair, folder, is_training):
    first, second = pair(worked_without_an_image, folder, is_training)
    assert isinstance(first, FileNotFoundError)
    assert isinstance(second, FileNotFoundError)
    assert str(first) == str(second)
    assert "gone.png" in str(first)


def worked_without_an_image(ranks, folder, is_training):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glip_adapt.engine.batches.BATCH_PIXELS", 1)
        val = load_dataset(str(folder)).val
        gone = val.records[1]  # of the share of rank 1 where predictions are made
        assert gone.header  # which all ranks read
        object.__setattr__(gone, "path", Path("gone.png"))
        if is_training:
            return train_model(build("prompt"), val, None, CONFIG)
        return predict_split(build("zero_shot"), val)


def interrupted(ranks, folder):
    """Train; Ctrl-C comes to rank 1 alone, in the middle of things."""

    def press(step, total):
        if ranks.rank == 1 and step.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    model, data = build("prompt"), load_dataset(str(folder))
    history = train_model(model, data.train, None, CONFIG, on_step=press)
    return len(history.steps), history.stopped_by, len(predict_split(model, data.val))


def test_an_interrupt_of_one_rank_ends_training_on_both_after_the_same_step(pair, folder):
    first, second = pair(interrupted, folder)
    assert first == second
    assert first[:2] == (2, "interrupt")


def test_ranks_with_other_images_are_refused(pair, folder):
    for error in pair(trained_on_others, folder):
        assert isinstance(error, RanksError)
        assert str(error) == "Rank 1 has other images than rank 0. Start all alike."


def trained_on_others(ranks, folder):
    data = load_dataset(str(folder))
    train_model(build("prompt"), (data.train, data.val)[ranks.rank], None, CONFIG)


def test_two_processes_on_one_gpu_are_refused(pair):
    for error in pair(started_on_one_gpu):
        assert isinstance(error, RanksError)
        assert "2 processes share 1 GPUs" in str(error)


def started_on_one_gpu(ranks):
    ranks.check_alike({}, torch.device("cuda:0"))


class UnsendableError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_be_sent_keeps_its_text_and_an_own_one_its_type(pair):
    assert pair(raised_unsendable) == [("RanksError", "UnsendableError: 1 and 2"), ("UnsendableError", "1 and 2")]


def raised_unsendable(ranks):
    try:
        with ranks.together():
            if ranks.rank == 1:
                raise UnsendableError(1, 2)
    except Exception as error:
        return type(error).__name__, str(error)


def test_the_death_of_one_rank_ends_the_other(folder):
    two, started = Pair(), time.monotonic()
    for end in two.ends:
        end.send((dead, ()))
    error = two.ends[0].recv()
    assert time.monotonic() - started < SOON + 10  # the start included
    assert isinstance(error, RanksError)
    assert "Another process of this training ended too early" in str(error)
    two.close()


def dead(ranks):
    if ranks.rank == 1:
        os._exit(3)
    ranks.agreed(1)
    ranks.gather([1])


# One process ---------------------------------------------------------------------------------------------------------


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert (ranks.rank, ranks.count, type(current())) == (0, 1, Ranks)
        assert list(ranks.share("abc")) == ["a", "b", "c"]
        assert ranks.gather([1, 2]) == [1, 2]
        assert ranks.first(lambda: 5) == ranks.agreed(5) == 5
        with pytest.raises(KeyError), ranks.together():
            raise KeyError
    assert not torch.distributed.is_initialized()
