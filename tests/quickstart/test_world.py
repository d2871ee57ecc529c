"""The quickstart's world: what is shown, what is said of it, and what never is."""

import re

import numpy as np
import pytest

from ti_flax.quickstart.critters import drawing, world

SCENES = [world.training_scene(seed=0, index=index) for index in range(3000)]
POSE = world.random_pose(np.random.default_rng(5))
LOOK = drawing.Look("round", "red", "white", "dotted", "ears")


def picture(look=LOOK, background="white", style=world.NO_STYLE, pose=POSE):
    return drawing.draw(drawing.Scene(look, background, style, pose))


def nearest(colour, palette):
    def distance(name):
        return np.linalg.norm(np.subtract(palette[name], colour))

    return min(palette, key=distance)


def test_a_scene_is_a_function_of_seed_and_index():
    again = world.training_scene(seed=0, index=7)
    assert again == SCENES[7]
    np.testing.assert_array_equal(drawing.draw(again), drawing.draw(SCENES[7]))
    assert world.training_scene(seed=1, index=7) != again


def test_captions_are_a_function_of_their_generator():
    first, second = (
        [world.caption(scene, rng) for scene in SCENES[:50]]
        for rng in (np.random.default_rng(3), np.random.default_rng(3))
    )
    assert first == second


def test_held_out_looks_are_never_shown_in_any_accent_colour():
    held_out = {look._replace(accent="") for look in world.HELD_OUT_LOOKS}
    shown = {scene.look for scene in SCENES} | set(world.SPECIES.values())
    assert not held_out & {look._replace(accent="") for look in shown}
    assert len(held_out) == len(world.HELD_OUT_LOOKS)


def test_held_out_styles_are_never_shown():
    shown = {scene.style for scene in SCENES} | set(world.STYLES.values())
    assert not shown & set(world.HELD_OUT_STYLES)


def test_every_value_of_every_attribute_is_among_species_and_held_out_looks():
    every = (world.SHAPES, world.BODIES, world.ACCENTS, world.PATTERNS, world.TOPS)
    for looks in (world.SPECIES.values(), world.HELD_OUT_LOOKS):
        for values, seen in zip(every, zip(*looks, strict=True), strict=True):
            assert set(seen) == set(values)


def test_species_and_styles_have_looks_of_their_own():
    assert len(set(world.SPECIES.values())) == len(world.SPECIES_NOUNS) == 40
    assert len(set(world.STYLES.values())) == len(world.STYLE_NOUNS)


def test_captions_tell_the_truth():
    rng = np.random.default_rng(0)
    for scene in SCENES:
        text = world.caption(scene, rng)
        look, style = scene.look, scene.style
        if background := re.search(r"on a (\w+) background", text):
            assert background[1] == scene.background
        if feet := re.search(r"(\w+) feet", text):
            assert feet[1] == look.accent
        if described := re.search(r"([\w ]+) critter", text):
            said = described[1].split()
            for values, truth in (
                (world.SHAPES, look.shape),
                (world.BODIES, look.body),
                (world.PATTERNS, look.pattern),
            ):
                assert set(said) & set(values) <= {truth}
        if manner := re.search(r"([\w ]+) art\\b", text):
            said = set(manner[1].split())
            assert said & set(drawing.TINTS) <= {style.tint}
            assert said & set(drawing.TEXTURES) <= {style.texture}
        if style == world.NO_STYLE:
            assert not set(text.split()) & {"art", *world.STYLE_NOUNS}


def test_a_tenth_of_the_captions_is_empty_and_half_the_rest_names_the_look():
    rng = np.random.default_rng(0)
    texts = [world.caption(scene, rng) for scene in SCENES]
    assert texts.count("") / len(texts) == pytest.approx(0.1, abs=0.02)
    species = sum(bool(set(t.split()) & set(world.SPECIES_NOUNS)) for t in texts)
    described = sum("critter" in text for text in texts)
    assert species / (species + described) == pytest.approx(0.5, abs=0.03)


def test_captions_fit_a_context_of_48_tokens_at_one_token_a_word():
    rng = np.random.default_rng(0)
    longest = max(
        len(re.findall(r"\w+|[^\w\s]", world.caption(scene, rng))) for scene in SCENES
    )
    assert longest + 2 <= 48 - 16, "there must be room for 16 learned vectors"


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("shape", world.SHAPES),
        ("body", world.BODIES),
        ("accent", world.ACCENTS),
        ("pattern", world.PATTERNS),
        ("top", world.TOPS),
    ],
)
def test_every_attribute_changes_many_pixels(attribute, values):
    pictures = [picture(LOOK._replace(**{attribute: value})) for value in values]
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            change = np.abs(first.astype(int) - second).max(-1)
            assert (change > 60).sum() >= 60


def test_every_style_changes_the_picture():
    styles = [*world.STYLES.values(), *world.HELD_OUT_STYLES, world.NO_STYLE]
    pictures = [picture(style=style).astype(float) for style in styles]
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert np.abs(first - second).mean() > 4


@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_the_corners_show_the_background(background):
    shown = picture(background=background)
    for corner in (shown[:4, :4], shown[:4, -4:]):
        colour = np.median(corner.reshape(-1, 3), 0)
        assert nearest(colour, drawing.BACKGROUND_COLOURS) == background


@pytest.mark.parametrize("shape", world.SHAPES)
@pytest.mark.parametrize("body", world.BODIES)
def test_the_belly_of_a_plain_critter_shows_its_colour(shape, body):
    shown = picture(drawing.Look(shape, body, "white", "plain", "none"))
    row, column = round(POSE.y + 0.48 * POSE.size), round(POSE.x)
    assert nearest(shown[row, column], drawing.BODY_COLOURS) == body


def test_critters_stay_inside_the_picture():
    rng = np.random.default_rng(0)
    for look in world.SHOWN_LOOKS[::60]:
        shown = picture(look, pose=world.random_pose(rng)).astype(int)
        edge = np.concatenate([shown[0], shown[:40, 0], shown[:40, -1]])
        off_background = np.abs(edge - shown[0, 0]).max(-1) > 40
        assert off_background.mean() < 0.1
