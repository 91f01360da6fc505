"""Pre-training on captioned images: a stopped run goes on as if it had not been, its rates, and what it refuses."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import DINO, TINY

from glip_adapt.core.sentences import sentence_caption
from glip_adapt.core.settings import ViewConfig
from glip_adapt.data.captioned import CaptionedImage, CaptionedSplit
from glip_adapt.data.dataset import load_dataset
from glip_adapt.engine import pretrain
from glip_adapt.engine.pretrain import CaptionedBatches, PretrainConfig, PreTraining, decay_groups
from glip_adapt.trunks.catalogue import load_tokenizer

VIEW = ViewConfig(short_side=64, max_long_side=96)
NO_LOSS = ("step", "gradient_norm", "learning_rate", "seconds")
CONFIG = PretrainConfig(steps=4, warm_up=2, log_every=1, save_every=2, score_every=2, averaged=0.5)


@pytest.fixture
def batches(coco_folder):
    caption = sentence_caption("a [red box] and a [blue box]")
    images = tuple(
        CaptionedImage(record=record, sentences=(caption,), absent=("tree", "star"))
        for record in load_dataset(coco_folder).train.records
    )
    return CaptionedBatches(CaptionedSplit("shapes", images), load_tokenizer("glip-nano"), VIEW, batch=3, seed=0)


@pytest.fixture(params=["tiny_trunk", "dino_trunk"])
def start(request, batches, tmp_path):
    """Prepare a run of the same network in some folder; the tiny networks have dropout."""
    trunk = request.getfixturevalue(request.param)
    weights = {name: tensor.clone() for name, tensor in trunk.network.state_dict().items()}

    def prepare(folder, config=CONFIG, **options):
        torch.manual_seed(3)
        network = trunk.spec.family.build(TINY if request.param == "tiny_trunk" else DINO)
        network.load_state_dict(weights)
        return PreTraining(network, batches, tmp_path / folder, config, **options)

    return prepare


def log_of(run):
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def without_seconds(log):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in log]


def test_a_stopped_run_ends_where_an_undisturbed_one_does(start):
    whole = start("whole")
    whole.run()
    start("parts").run(2)
    with (start("parts").folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "token": 0.0}) + '\n{"step": 4, "tok')  # what a kill would have left
    parts = start("parts")
    assert parts.done == 2
    torch.rand(5)  # what others draw in between
    parts.run()
    assert without_seconds(log_of(parts)) == without_seconds(log_of(whole))
    assert [line["step"] for line in log_of(whole)] == [1, 2, 3, 4]
    for mine, theirs in ((parts.network, whole.network), (parts.average, whole.average)):
        others = theirs.state_dict()
        assert all(torch.equal(tensor, others[name]) for name, tensor in mine.state_dict().items())


def test_the_network_learns_and_its_average_lags_behind(start):
    run = start("run", replace(CONFIG, steps=12, averaged=0.9))
    first = {name: tensor.clone() for name, tensor in run.network.named_parameters()}
    run.run()
    losses = [sum(line[name] for name in line if name not in NO_LOSS) for line in log_of(run)]
    assert all(map(math.isfinite, losses))
    assert min(losses[-3:]) < losses[0]
    moved = sum((p - first[name]).norm() for name, p in run.network.named_parameters())
    lag = sum((p - first[name]).norm() for name, p in run.average.named_parameters())
    assert 0 < lag < moved


def test_scores_are_of_the_averaged_network_and_change_nothing(start):
    asked = []

    def score(network):
        asked.append(network)
        torch.rand(7)
        return {"mean": 0.5}

    scored, plain = start("scored", score=score), start("plain")
    scored.run()
    plain.run()
    assert asked == [scored.average] * 2
    lines = log_of(scored)
    assert [line for line in lines if "mean" in line] == [{"step": 2, "mean": 0.5}, {"step": 4, "mean": 0.5}]
    assert without_seconds(line for line in lines if "mean" not in line) == without_seconds(log_of(plain))


def test_a_folder_of_another_run_is_refused(start):
    start("run", facts={"data": "shapes"}).run(1)
    for other in ({"config": replace(CONFIG, learning_rate=1.0)}, {"facts": {"data": "others"}}):
        with pytest.raises(ValueError, match=r"state\.pt is of the run .* Name another folder"):
            start("run", **{"facts": {"data": "shapes"}, **other})


def test_the_caller_s_random_numbers_stay_as_they_are(start):
    run = start("run")
    torch.manual_seed(9)
    before = torch.get_rng_state()
    run.run(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_rate_rises_falls_to_a_fiftieth_and_starts_again_at_half():
    rate = PretrainConfig().rate_at
    assert rate(0) == pytest.approx(1 / 200)
    assert rate(99) == pytest.approx(0.5, rel=0.01)
    assert rate(1000) == pytest.approx(0.51)
    assert rate(1999) == pytest.approx(0.02, rel=1e-3)
    assert max(map(rate, range(2000))) < 1
    assert [rate(2000 + step) for step in range(2000)] == pytest.approx([rate(step) / 2 for step in range(2000)])


def test_vectors_have_no_weight_decay(tiny_trunk):
    matrices, others = decay_groups(tiny_trunk.network, PretrainConfig())
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.03, 0.0)
    assert all(p.ndim > 1 for p in matrices["params"])
    assert all(p.ndim <= 1 for p in others["params"])
    assert len(matrices["params"]) + len(others["params"]) == len(list(tiny_trunk.network.parameters()))


def test_a_batch_depends_on_seed_and_step_alone(batches):
    first, again = batches[7], batches[7]
    assert torch.equal(first.images.pixels, again.images.pixels)
    assert torch.equal(first.tokens.ids, again.tokens.ids)
    assert not torch.equal(first.images.pixels, batches[8].images.pixels)


def test_boxes_of_a_batch_lie_where_their_phrase_is_shown(batches):
    """Also in mirrored images. A blue box may hide the centre of a red one."""
    shown, hidden, channels = 0, 0, (0, 2)  # of red and blue in RGB
    for step in range(4):
        batch = batches[step]
        for image, target in zip(batch.images.pixels, batch.targets, strict=True):
            for (x0, y0, x1, y1), label in zip(target.boxes_xyxy.tolist(), target.labels.tolist(), strict=True):
                centre = image[:, round((y0 + y1) / 2), round((x0 + x1) / 2)].tolist()
                is_shown = centre[channels[label]] > 150 > centre[channels[1 - label]]
                shown, hidden = shown + is_shown, hidden + (not is_shown and label == 0)
    assert shown + hidden == 4 * 3 * 2
    assert hidden <= 4


def test_a_run_can_be_made_longer(start):
    start("short", replace(CONFIG, steps=2)).run()
    longer, whole = start("short"), start("whole")
    assert longer.done == 2
    longer.run()
    whole.run()
    others = whole.network.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in longer.network.state_dict().items())


def test_an_image_whose_caption_tells_left_from_right_is_never_mirrored(batches):
    sided = tuple(
        replace(image, sentences=(sentence_caption("the [blue box] left of it"),)) for image in batches.split.images
    )
    with_sides = CaptionedBatches(replace(batches.split, images=sided), batches.tokenizer, VIEW, batch=12, seed=0)
    plain = CaptionedBatches(batches.split, batches.tokenizer, VIEW, batch=12, seed=0)
    assert 1 < len({tuple(target.boxes_xyxy.flatten().tolist()) for target in with_sides[1].targets}) <= 6
    assert len({tuple(t.boxes_xyxy.flatten().tolist()) for step in range(4) for t in plain[step].targets}) > 6


def test_a_state_is_read_as_data(start, monkeypatch):
    start("run").run(1)
    load, kinds = torch.load, []
    monkeypatch.setattr(pretrain.torch, "load", lambda *a, **k: kinds.append(k["weights_only"]) or load(*a, **k))
    start("run")
    assert kinds == [True]
