"""The quality benchmark: its judge, its concepts, its intervals, and what they show."""

import json
import math
import types

import jax
import numpy as np
import pytest
import runs

from ti_flax.benchmarks.quality import held_out, judge, scores, train_judge, word_scores
from ti_flax.benchmarks.quality.keys import QualityKeys
from ti_flax.quickstart import settings
from ti_flax.quickstart.critters import drawing, world

# The judge reads fresh drawings at least this well; measured: 96 to 99.9 %.
JUDGE_BOUND = 0.93


def test_judge_reads_fresh_drawings():
    own = judge.own_accuracy(150, seed=11)
    assert set(own) == set(judge.ATTRIBUTES)
    assert min(own.values()) > JUDGE_BOUND, own


def test_judge_reads_held_out_looks_as_well_as_any():
    rng = np.random.default_rng(12)
    scenes = [
        judge.random_scene(rng, styled=False)._replace(look=look)
        for look in world.HELD_OUT_LOOKS * 4
    ]
    found = judge.read_attributes(judge.draw_all(scenes))
    for name in judge.LOOK_ATTRIBUTES:
        true = [judge.ATTRIBUTES[name].index(getattr(s.look, name)) for s in scenes]
        assert np.mean(found[name] == true) > JUDGE_BOUND, name


def test_judge_reads_blurred_and_noisy_drawings():
    rng = np.random.default_rng(13)
    scenes = [judge.random_scene(rng, styled=False) for _ in range(200)]
    pixels = judge.scaled(judge.draw_all(scenes))
    spoilt = np.asarray(train_judge.spoil(pixels, jax.random.key(1)))
    assert 0.02 < np.abs(spoilt - pixels).mean() < 0.3
    bytes_ = np.clip(np.rint(127.5 * (spoilt + 1)), 0, 255).astype(np.uint8)
    found = judge.read_attributes(bytes_)
    true = np.array([judge.labels(scene) for scene in scenes])
    right = [np.mean(found[name] == true[:, i]) for i, name in enumerate(found)]
    assert min(right) > 0.85, dict(zip(found, right, strict=True))


def test_fitting_the_judge_lowers_its_error():
    pictures, labels = train_judge.drawn(100, seed=3)
    params = train_judge.fit(pictures, labels, num_steps=6, seed=0)
    first = train_judge.fit(pictures, labels, num_steps=1, seed=0)
    logits = [
        judge.Judge().apply({"params": p}, judge.scaled(pictures))
        for p in (first, params)
    ]
    before, after = (_mean_error(judge.split_logits(x), labels) for x in logits)
    assert after < before


def _mean_error(parts, labels):
    """Cross entropy, written out again."""
    errors = []
    for index, part in enumerate(parts.values()):
        part = np.asarray(part, np.float64)
        log_sum = np.log(np.exp(part).sum(axis=1))
        errors.append(log_sum - part[np.arange(len(part)), labels[:, index]])
    return np.mean(errors)


def test_labels_name_what_a_scene_shows():
    rng = np.random.default_rng(0)
    scene = judge.random_scene(rng, styled=True)
    said = {
        n: judge.ATTRIBUTES[n][i]
        for n, i in zip(judge.ATTRIBUTES, judge.labels(scene), strict=True)
    }
    assert drawing.Look(*(said[n] for n in drawing.Look._fields)) == scene.look
    assert drawing.Style(said["tint"], said["texture"]) == scene.style
    assert said["background"] == scene.background
    assert scene.style != world.NO_STYLE


def test_concepts_are_unseen_and_start_from_several_words():
    concepts = held_out.concepts(12)
    objects = [c for c in concepts if c.learnable_property == "object"]
    styles = [c for c in concepts if c.learnable_property == "style"]
    assert len({c.target for c in concepts}) == len(concepts) == 12 + 3
    assert {c.target for c in styles} == set(world.HELD_OUT_STYLES)
    for concept in objects:
        assert concept.target not in world.SHOWN_LOOKS
        assert concept.target not in world.SPECIES.values()
        # A species to start from must be another critter than the one to learn.
        assert world.SPECIES.get(concept.initializer) != concept.target
    assert [c.initializer for c in objects].count(world.OBJECT_WORD) == 4
    assert sum(c.initializer == getattr(c.target, "shape", "") for c in objects) == 4
    assert sum(c.initializer in world.SPECIES for c in objects) == 4
    assert len({c.initializer for c in styles}) == 3


@pytest.mark.parametrize("learnable_property", ["object", "style"])
def test_contexts_differ_and_ask_for_every_background_alike(learnable_property):
    contexts = held_out.contexts(learnable_property, 12)
    sentences, backgrounds = zip(*contexts, strict=True)
    assert len(set(sentences)) == 12
    assert all(backgrounds.count(name) == 2 for name in world.BACKGROUNDS)
    for sentence, background in contexts:
        assert sentence.count("{}") == 1
        assert sentence.endswith(f" on a {background} background")


def _found(target, **settings):
    """What the judge reads off the pictures that a concept is learned from."""
    concept = held_out.Concept(target, "critter", number=4)
    scenes = held_out.training_scenes(concept, seed=0, **settings)
    return judge.read_attributes(judge.draw_all(scenes))


def test_training_pictures_show_the_concept():
    look = world.HELD_OUT_LOOKS[3]
    found = _found(look)
    for name in judge.LOOK_ATTRIBUTES:
        assert set(found[name]) == {judge.ATTRIBUTES[name].index(getattr(look, name))}
    style = world.HELD_OUT_STYLES[1]
    found = _found(style)
    assert set(found["tint"]) == {drawing.TINTS.index(style.tint)}
    assert len(set(found["shape"])) > 1
    # The word need not mean one of them.
    assert len(set(found["background"])) == len(found["background"])


@pytest.mark.parametrize("target", [world.HELD_OUT_LOOKS[3], world.NO_STYLE])
def test_training_pictures_on_one_background(target):
    found = _found(target, one_background=True)
    assert set(found["background"]) == {4}


def test_each_method_learns_the_same_concepts_from_the_same_pictures():
    concepts = held_out.concepts(2)
    methods = ("templates", "captions", "masks")
    learned = held_out.learned(concepts, methods, repeats=3)
    by_method = {m: [c for c in learned if c.method == m] for m in methods}
    assert [c.number for c in by_method["templates"]] == [*range(3 * len(concepts))]
    assert [c.target for c in by_method["templates"]] == [
        c.target for c in concepts
    ] * 3
    assert by_method["captions"] == [
        c._replace(method="captions") for c in by_method["templates"]
    ]
    # What is masked in a style's picture is in the style, too.
    assert {c.learnable_property for c in by_method["masks"]} == {"object"}
    assert len(by_method["masks"]) == 3 * 2


def test_captions_say_the_background_of_their_picture_and_nothing_else_more():
    concept = held_out.Concept(world.HELD_OUT_LOOKS[0], "critter")
    scenes = held_out.training_scenes(concept, seed=0)
    plain = held_out.training_prompts(concept, scenes)
    captions = held_out.training_prompts(concept._replace(method="captions"), scenes)
    assert len({scene.background for scene in scenes}) == len(scenes) == len(plain)
    for scene, without, said in zip(scenes, plain, captions, strict=True):
        end = f" on a {scene.background} background"
        assert all(sentence.count("{}") == 1 for sentence in without)
        assert said == [sentence + end for sentence in without]


def test_mask_is_white_where_nothing_of_the_background_is_seen():
    rng = np.random.default_rng(4)
    for _ in range(10):
        scene = judge.random_scene(rng, styled=False)
        mask = held_out.subject_mask(scene) == 255
        shown = np.stack(
            [
                drawing.draw(scene._replace(background=name))
                for name in world.BACKGROUNDS
            ]
        )
        assert (shown[:, mask] == shown[0, mask]).all()
        others = shown[:, ~mask]
        assert (others != others[0]).any(axis=(0, 2)).all()
        # The middle of the body, and none of the corners.
        x, y = round(scene.pose.x), round(scene.pose.y)
        assert mask[y, x] and not mask[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        assert 0.1 < mask.mean() < 0.5


def test_a_score_counts_what_is_right():
    look = world.HELD_OUT_LOOKS[0]
    word = word_scores.Word("templates", "x", look, np.zeros(2, np.float32), "pink")
    backgrounds = [b for _, b in held_out.contexts("object", 4)]
    right = {**look._asdict(), "tint": "natural", "texture": "smooth"}
    found = {
        name: np.full(4, judge.ATTRIBUTES[name].index(value))
        for name, value in right.items()
    }
    found["background"] = np.array([world.BACKGROUNDS.index(b) for b in backgrounds])
    found["shape"][1:] += 1
    found["background"][0] += 1
    scored = word_scores.score(word, found)
    assert scored.accuracy == {
        **dict.fromkeys(judge.LOOK_ATTRIBUTES, 1.0),
        "shape": 0.25,
        "background": 0.75,
    }
    assert scored.appearance == pytest.approx((0.25 + 4) / 5)
    free = np.array([world.BACKGROUNDS.index(name) for name in ("pink", "blue")])
    remembered = word_scores.score(word, found, free)
    assert remembered.accuracy == scored.accuracy | {scores.UNASKED: 0.5}
    assert remembered.appearance == scored.appearance


def test_interval_is_that_of_the_binomial_distribution():
    """Of n values 0 or 1, a mean drawn again is binomial: its quantiles are known."""
    values = [1.0] * 12 + [0.0] * 8
    estimate = scores.mean_over_words(values, seed=0)
    mass = [math.comb(20, k) * 0.6**k * 0.4 ** (20 - k) for k in range(21)]
    below = np.cumsum(mass)
    low = np.argmax(below > 0.025) / 20
    high = np.argmax(below > 0.975) / 20
    assert estimate == pytest.approx((0.6, low, high))


def test_equal_words_have_an_interval_of_no_width():
    assert scores.mean_over_words([0.7] * 5, seed=3) == pytest.approx((0.7, 0.7, 0.7))
    assert scores.ratio_of_means([0.4] * 3, [0.8] * 4, 0) == pytest.approx([0.5] * 3)
    assert scores.difference_of_means([0.4] * 3, [0.8] * 4, 0) == pytest.approx(
        [-0.4] * 3
    )


def test_interval_of_a_difference_adds_the_variances():
    rng = np.random.default_rng(5)
    left, right = rng.normal(0.6, 0.1, 60), rng.normal(0.5, 0.2, 40)
    estimate = scores.difference_of_means(left.tolist(), right.tolist(), seed=0)
    deviation = math.sqrt(left.var() / 60 + right.var() / 40)
    half = 1.96 * deviation
    assert estimate.mean == pytest.approx(left.mean() - right.mean())
    assert estimate.high - estimate.mean == pytest.approx(half, rel=0.08)
    assert estimate.mean - estimate.low == pytest.approx(half, rel=0.08)


def _score(group, kind, *rates):
    names = judge.LOOK_ATTRIBUTES if kind == "object" else judge.STYLE_ATTRIBUTES
    accuracy = dict(zip((*names, "background"), rates, strict=True))
    return scores.Score(group, kind, "word", accuracy)


KNOWN = [
    _score("initializer", "object", 0.1, 0.2, 0.3, 0.4, 0.0, 0.9),
    _score("initializer", "object", 1.0, 1.0, 1.0, 1.0, 0.5, 0.7),
    _score("templates", "object", 0.5, 0.5, 0.5, 0.5, 0.5, 0.6),
    _score("templates", "object", 0.9, 0.9, 0.9, 0.9, 0.9, 0.8),
    _score("masks", "object", 0.6, 0.6, 0.6, 0.6, 0.6, 0.9),
    _score("masks", "object", 0.8, 0.8, 0.8, 0.8, 0.8, 1.0),
    _score("noun", "object", 1.0, 0.8, 0.8, 0.6, 0.8, 0.9),
    _score("initializer", "style", 0.2, 0.4, 0.5),
    _score("templates", "style", 0.6, 0.6, 0.5),
    # Learned a second time.
    _score("templates", "style", 0.2, 0.2, 0.5),
    _score("noun", "style", 0.8, 1.0, 0.5),
]


def test_summary_of_known_scores():
    objects, styles = scores.summarise(KNOWN, seed=0).values()
    assert objects["words"] == {"initializer": 2, "templates": 2, "masks": 2, "noun": 1}
    assert objects["accuracy"]["shape"]["initializer"].mean == pytest.approx(0.55)
    assert objects["accuracy"]["appearance"]["templates"].mean == pytest.approx(0.7)
    assert objects["accuracy"]["background"]["templates"].mean == pytest.approx(0.7)
    # Of the pairs (0.5 beside 0.2) and (0.9 beside 0.9), only the first is better.
    plain, masks = objects["methods"].values()
    assert plain["better_than_initializer"] == 1
    assert plain["share_of_nouns"].mean == pytest.approx(0.7 / 0.8)
    assert plain["background_against_nouns"].mean == pytest.approx(-0.2)
    assert "beside" not in plain
    assert masks["beside"] == "templates"
    # Word by word: 0.1 more and 0.1 less; 0.3 and 0.2 more.
    assert masks["appearance"] == pytest.approx((0, -0.1, 0.1))
    assert masks["background"] == pytest.approx((0.25, 0.2, 0.3))
    [style] = styles["methods"].values()
    # Of two times of learning, beside one initializer of 0.3.
    assert style["better_than_initializer"] == 1
    assert style["share_of_nouns"].mean == pytest.approx((0.6 + 0.2) / 2 / 0.9)


def test_table_has_every_attribute_in_percent():
    table = scores.table(scores.summarise(KNOWN, seed=0), {"shape": 0.987})
    [shape] = [line for line in table.splitlines() if line.startswith("shape")]
    cells = (
        "55.0 [10.0, 100.0]",
        "70.0 [50.0, 90.0]",
        "70.0 [60.0, 80.0]",
        "100.0 [100.0, 100.0]",
    )
    assert shape.split() == ["shape", *" ".join(cells).split(), "98.7"]
    for name in (*judge.LOOK_ATTRIBUTES, *judge.STYLE_ATTRIBUTES, "background"):
        assert f"\n{name}" in table
    assert "templates: better than its initializer: 1 of 2" in table
    assert "templates: share of the nouns' appearance: 44.4 [22.2, 66.7] %" in table
    said = "masks beside templates, points: appearance 0.0 [-10.0, 10.0]; background "
    assert said in table


def test_rows_are_held_as_short_as_a_runs(tiny_model, monkeypatch):
    from ti_flax.benchmarks.quality import base_model, learn_many

    def encode_pictures(encode, images, **_):
        return np.zeros((len(images), 2, 8, 8, 8), np.float32)

    monkeypatch.setattr(learn_many, "encode_pictures", encode_pictures)
    config = settings.load_config([f"--pretrained_model_name_or_path={tiny_model}"])
    assert config.hold_row_norm == "clip"
    base = base_model.load(config)
    lengths = np.linalg.norm(base.table(), axis=1)
    for slot in learn_many._slots(config, base, held_out.concepts(1), False):
        assert slot.norms == {"text_encoder": pytest.approx(np.percentile(lengths, 99))}


def test_slots_of_a_method_differ_in_what_it_changes_alone(tiny_model, monkeypatch):
    from ti_flax.benchmarks.quality import base_model, learn_many

    def encode_pictures(encode, images, **_):
        stride = base.model.family.downscale
        means = np.stack([image[::stride, ::stride].mean(axis=2) for image in images])
        return np.tile(means[:, None, :, :, None], (1, 2, 1, 1, 8)).astype(np.float32)

    monkeypatch.setattr(learn_many, "encode_pictures", encode_pictures)
    config = settings.load_config([f"--pretrained_model_name_or_path={tiny_model}"])
    base = base_model.load(config)
    methods = ("templates", "captions", "masks")
    # Styles come in the order of the numbers: the looks' slots are those with masks.
    learned = held_out.learned(held_out.concepts(1)[:1], methods, repeats=2)
    slots = learn_many._slots(config, base, learned, True)
    plain, captions, masks = slots[:2], slots[2:4], slots[4:]
    for number in range(2):
        own = [each[number] for each in (plain, captions, masks)]
        assert len({jax.random.key_data(slot.seed_key).tobytes() for slot in own}) == 1
        moments = [slot.buckets[0].moments for slot in own]
        assert all((each == moments[0]).all() for each in moments)
        assert (moments[0] != plain[1 - number].buckets[0].moments).any()
        assert (own[0].prompts["text_encoder"] == own[2].prompts["text_encoder"]).all()
        assert own[0].prompts["text_encoder"].shape[0] == 5 * 27
        assert (own[0].prompts["text_encoder"] != own[1].prompts["text_encoder"]).any()
        assert own[0].buckets[0].prompt_spans.tolist() == [
            [27 * picture, 27] for picture in range(5)
        ]
        assert own[0].buckets[0].loss_weights is own[1].buckets[0].loss_weights is None
        weights = own[2].buckets[0].loss_weights
        assert weights.shape == moments[0].shape[:-1]
        assert weights.min() == np.float32(config.unmasked_weight)
        assert weights.max() == 1
        assert (weights[:, 1] == weights[:, 0, :, ::-1]).all()


@pytest.mark.parametrize(
    "networks", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_benchmark_runs_from_training_to_table(
    networks, tiny_model, tmp_path, capsys, monkeypatch
):
    """With a random model, whose pictures are noise: only that all of it is there."""
    if not networks:
        runs.skip_networks(monkeypatch)
    from ti_flax.benchmarks.quality import measure

    keys = QualityKeys(
        model=str(tiny_model),
        objects=1,
        species=1,
        num_images=1,
        steps=2,
        max_train_steps=2,
        lr_scheduler="constant",
        methods=("templates", "captions", "masks"),
        one_background=True,
        train_batch_size=8,
        output=tmp_path / "new" / "quality.json",
    )
    content = measure.measure(keys, progress=False)
    written = json.loads(keys.output.read_text())
    # As text, for a ratio to nouns that a random model does not know is NaN.
    assert json.dumps(written["object"]) == json.dumps(content["object"])
    assert written["settings"]["learning_rate"] == 3e-3
    assert written["settings"]["lr_scheduler"] == "constant"
    assert written["steps"] == [2] * (4 + 4 + 1)
    assert written["settings"]["hold_row_norm"] == "clip"
    groups = [word["group"] for word in written["words"]]
    assert groups == [
        *["initializer"] * 4,
        *["templates"] * 4,
        *["captions"] * 4,
        "masks",
        *["noun"] * 9,
    ]
    assert written["object"]["methods"]["masks"]["beside"] == "templates"
    assert set(written["object"]["accuracy"]["shape"]["noun"]) == {
        *("mean", "low", "high")
    }
    told = capsys.readouterr().out
    assert "templates (1)" in told
    assert "captions beside templates, points: appearance" in told
    assert told.count("own, unasked") == 2 * 1 + 3


def test_concepts_stop_one_by_one_and_keep_their_best(tiny_model, monkeypatch):
    """Where the step says so; that it does is in step/test_stopping.py."""
    from ti_flax.benchmarks.quality import base_model, learn_many

    def encode_pictures(encode, images, **_):
        return np.zeros((len(images), 2, 8, 8, 8), np.float32)

    stops, dispatched = np.array([30, 20, 20, 20]), []

    def compile_train_steps(recipe):
        def run(state, frozen, bank, num_steps):
            dispatched.append(num_steps)
            steps = sum(dispatched) - num_steps + 1 + np.arange(num_steps)
            best = jax.tree.map(lambda rows: rows + 1, bank.initial)
            progress = state.progress._replace(
                best_rows=best, evaluations=np.ones_like(stops)
            )
            state = state._replace(step=stops.clip(max=steps[-1]), progress=progress)
            return state, types.SimpleNamespace(running=steps[:, None] < stops)

        return run

    monkeypatch.setattr(learn_many, "encode_pictures", encode_pictures)
    monkeypatch.setattr(learn_many.dispatch, "compile_train_steps", compile_train_steps)
    model = f"--pretrained_model_name_or_path={tiny_model}"
    keys = ["--stop=dvar", "--dvar_window=20", "--keep=best", "--max_train_steps=50"]
    config, concepts = settings.load_config([model, *keys]), held_out.concepts(1)
    base = base_model.load(config)
    rows, steps = learn_many.learn(config, base, concepts, False, False)
    assert dispatched == [10, 10, 10] and steps == [30, 20, 20, 20]
    slots = learn_many._slots(config, base, concepts, False)
    initial = [slot.rows["text_encoder"][0] for slot in slots]
    np.testing.assert_allclose(rows, np.stack(initial) + 1)


@pytest.mark.slow
def test_learned_words_do_what_nouns_do(tmp_path):
    """Half an hour on 2 CPU cores."""
    from ti_flax.benchmarks.quality import measure

    assert settings.MODEL.is_dir()
    content = measure.measure(QualityKeys(output=tmp_path / "quality.json"))
    for kind in ("object", "style"):
        part = content[kind]
        plain = part["methods"]["templates"]
        assert plain["better_than_initializer"] == part["words"]["templates"], kind
    # Beside the species nouns; what three styles reach is in docs/benchmarks.md.
    plain = content["object"]["methods"]["templates"]
    assert plain["share_of_nouns"]["mean"] >= 0.8
    assert plain["background_against_nouns"]["mean"] >= -0.1
