"""Command lines and files of other trainers: their names are ours, or are told of."""

import contextlib
import json
import logging
import re
from pathlib import Path

import pytest
import yaml

from ti_flax.config import (
    a1111_settings,
    concepts,
    diffusers_flags,
    foreign_keys,
    kohya_flags,
    onetrainer_keys,
)
from ti_flax.config.foreign_names import Ignored, Made, Refused
from ti_flax.config.run_config import Config, load_config
from ti_flax.runtime.errors import UserError

MODEL = "--pretrained_model_name_or_path=sd"
REQUIRED = [MODEL, "--train_data_dir=pictures", "--placeholder_token=<cat>"]
OURS = {key for group in concepts.ALL_GROUPS.values() for key in group.model_fields}
DOCS = Path(__file__).parent.parent.parent / "docs"

# The flags of sd-scripts' train_textual_inversion.py and of its SDXL variant, from
# their argument parsers, and what those without an argument mean by default.
KOHYA_FLAGS = """
    adaptive_noise_scale alpha_mask async_upload bucket_no_upscale bucket_reso_steps
    cache_info cache_latents cache_latents_to_disk cache_text_encoder_outputs
    cache_text_encoder_outputs_to_disk caption_dropout_every_n_epochs
    caption_dropout_rate caption_extension caption_extention caption_prefix
    caption_separator caption_suffix caption_tag_dropout_rate clip_skip color_aug
    conditioning_data_dir config_file console_log_file console_log_level
    console_log_simple dataset_class dataset_repeats ddp_gradient_as_bucket_view
    ddp_static_graph ddp_timeout debiased_estimation_loss debug_dataset deepspeed
    disable_mmap_load_safetensors dynamo_backend enable_bucket enable_wildcard
    face_crop_aug_range flip_aug fp16_master_weights_and_gradients fp8_base full_bf16
    full_fp16 fused_backward_pass gradient_accumulation_steps gradient_checkpointing
    highvram huber_c huber_scale huber_schedule huggingface_path_in_repo
    huggingface_repo_id huggingface_repo_type huggingface_repo_visibility
    huggingface_token in_json init_word ip_noise_gamma ip_noise_gamma_random_strength
    keep_tokens keep_tokens_separator learning_rate log_config log_prefix
    log_tracker_config log_tracker_name log_with logging_dir loss_type lowram
    lr_decay_steps lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio
    lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale lr_scheduler_type
    lr_warmup_steps masked_loss max_bucket_reso max_data_loader_n_workers max_grad_norm
    max_timestep max_token_length max_train_epochs max_train_steps mem_eff_attn
    metadata_author metadata_description metadata_is_negative_embedding
    metadata_license metadata_merged_from metadata_preprocessor metadata_tags
    metadata_thumbnail metadata_title metadata_trigger_phrase metadata_usage_hint
    min_bucket_reso min_snr_gamma min_timestep mixed_precision multires_noise_discount
    multires_noise_iterations no_half_vae noise_offset noise_offset_random_strength
    num_vectors_per_token offload_optimizer_device offload_optimizer_nvme_path
    offload_param_device offload_param_nvme_path optimizer_args optimizer_type
    output_config output_dir output_name persistent_data_loader_workers
    pretrained_model_name_or_path prior_loss_weight random_crop reg_data_dir
    resize_interpolation resolution resume resume_from_huggingface sample_at_first
    sample_every_n_epochs sample_every_n_steps sample_prompts sample_sampler
    save_every_n_epochs save_every_n_steps save_last_n_epochs save_last_n_epochs_state
    save_last_n_steps save_last_n_steps_state save_model_as save_n_epoch_ratio
    save_precision save_state save_state_on_train_end save_state_to_huggingface
    scale_v_pred_loss_like_noise_pred sdpa secondary_separator seed shuffle_caption
    skip_cache_check token_string token_warmup_min token_warmup_step
    tokenizer_cache_dir torch_compile train_batch_size train_data_dir use_8bit_adam
    use_lion_optimizer use_object_template use_style_template v2 v_parameterization
    v_pred_like_loss vae vae_batch_size wandb_api_key wandb_run_name weighted_captions
    weights xformers zero3_init_flag zero3_save_16bit_model zero_stage
    zero_terminal_snr
""".split()  # noqa: SIM905
# What kohya's own window always passes, and what asks for nothing.
IDLE = {
    "caption_dropout_every_n_epochs": "0",
    "clip_skip": "1",
    "huber_scale": "1.0",
    "max_token_length": "75",
    "optimizer_type": "AdamW8bit",
    "token_warmup_min": "1",
    "token_warmup_step": "0",
    "v_pred_like_loss": "0",
    "adaptive_noise_scale": "0",
    "weighted_captions": "false",
    "use_lion_optimizer": "false",
    "resume": "",
}


def load(*flags):
    return load_config([*REQUIRED, *flags])


def line_of(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_every_flag_of_kohya_is_known_in_exactly_one_way():
    assert len({*KOHYA_FLAGS}) == len(KOHYA_FLAGS) > 160
    for flag in KOHYA_FLAGS:
        assert (flag in OURS) + (flag in foreign_keys.NAMES) == 1, flag


def test_no_name_is_of_ours_or_means_two_things():
    assert not OURS & foreign_keys.NAMES.keys()
    tables = (diffusers_flags, kohya_flags, a1111_settings, onetrainer_keys)
    names = [name for table in tables for name in table.NAMES]
    twice = {name for name in names if names.count(name) > 1}
    assert twice == {"prior_loss_weight"}  # of DreamBooth's script and of kohya's


@pytest.mark.parametrize("name", foreign_keys.NAMES)
def test_each_name_gives_keys_of_a_run_or_one_line(name, caplog):
    value = {"learn_rate": "0.5", "caption_extension": ".txt"}.get(name, "7")
    match foreign_keys.NAMES[name]:
        case Made():
            try:
                keys = foreign_keys.translated({name: value})
            except UserError as error:
                assert str(error).startswith(f"{name}: expected ")
            else:
                assert keys.keys() <= Config.model_fields.keys()
        case Ignored(reason):
            assert foreign_keys.translated({name: value, "seed": 3}) == {"seed": 3}
            assert warnings_of(caplog) == [f"{name} is ignored: {reason}"]
        case Refused(advice):
            message = line_of(foreign_keys.translated, {name: value})
            assert message == f"{name} is not there: {advice}"
    caplog.clear()
    for empty in (None, "false", ""):
        if not isinstance(foreign_keys.NAMES[name], Made):
            assert foreign_keys.translated({name: empty}) == {}
    assert not caplog.records


def test_the_advice_names_keys_that_are():
    """A word with an underscore is a key, or is of another's."""
    elsewhere = {
        "dataset_config",
        "learned_embeds",
        *["HF_HOME", "WANDB_API_KEY", "WANDB_NAME", "WANDB_PROJECT", "HF_TOKEN"],
    }
    for name, entry in foreign_keys.NAMES.items():
        if isinstance(entry, Made):
            continue
        text = entry[0].replace("`", "").replace(";", "").replace(",", "")
        for word in text.split():
            word = word.strip(".():").removeprefix("--")
            if "_" in word and "/" not in word and "." not in word:
                known = word in OURS or word in elsewhere or word == "print_config"
                assert known or word in ("is_reg", "N_NAME"), (name, word)


def test_a_command_of_kohya_gives_its_settings(caplog):
    config = load_config(
        [
            MODEL,
            "--train_data_dir=./cat",
            "--token_string=catto",
            "--init_word=toy cat",
            "--num_vectors_per_token=4",
            "--resolution=512,512",
            "--optimizer_type=AdamW",
            "--optimizer_args",
            "weight_decay=0.01",
            "betas=0.9,0.99",
            "--max_grad_norm=0",
            "--lr_scheduler=cosine_with_restarts",
            "--lr_scheduler_num_cycles=3",
            "--save_every_n_steps=250",
            "--flip_aug",
            "--caption_extension=.txt",
            "--log_with=all",
            "--zero_terminal_snr",
            "--huggingface_repo_id=me/cat",
            "--huggingface_repo_visibility=private",
        ]
    )
    assert not caplog.records
    expected = {
        "placeholder_token": "catto",
        "initializer_token": "toy cat",
        "num_vectors": 4,
        "resolution": 512,
        "adam_weight_decay": 0.01,
        "adam_beta1": 0.9,
        "adam_beta2": 0.99,
        "max_grad_norm": None,
        "lr_num_cycles": 3,
        "checkpointing_steps": 250,
        "random_flip": True,
        "caption_source": "txt",
        "report_to": "all",
        "rescale_betas_zero_snr": True,
        "push_to_hub": True,
        "hub_model_id": "me/cat",
        "hub_private_repo": True,
    }
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize("name", IDLE)
def test_what_asks_for_nothing_is_not_told(name, caplog):
    assert load(f"--{name}={IDLE[name]}") == load()
    assert not caplog.records


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (["--use_object_template"], {"caption_source": "none"}),
        (
            ["--use_style_template"],
            {"caption_source": "none", "learnable_property": "style"},
        ),
        (["--use_style_template=false"], {}),
        (["--optimizer_type=bitsandbytes.optim.PagedAdamW8bit"], {}),
        (["--optimizer", "ADAMW_8BIT"], {}),
        (["--optimizer", "AdamW"], {}),
        (["--optimizer_args", "eps=1e-6"], {"adam_epsilon": 1e-6}),
        (["--huggingface_token=secret"], {}),
        (["--preserve_embedding_norm"], {"hold_row_norm": "median"}),
        (["--train_dtype", "BFLOAT_16"], {"mixed_precision": "bf16"}),
        (
            ["--learning_rate_scheduler=CONSTANT", "--learning_rate_warmup_steps=7"],
            {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 7},
        ),
        (["--loss_weight_fn=CONSTANT", "--loss_weight_strength=5.0"], {}),
        (["--prompt_source=filename"], {"caption_source": "filename"}),
        (["--steps=9", "--save_embedding_every=0"], {"max_train_steps": 9}),
    ],
)
def test_names_give_these_keys_and_no_others(flags, keys, caplog):
    before, found = load().model_dump(), load(*flags).model_dump()
    changed = {key: found[key] for key in before if before[key] != found[key]}
    assert changed == keys
    assert not caplog.records


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--optimizer_type=Lion"], "optimizer_type: expected AdamW, found 'Lion'"),
        (["--optimizer=ADAFACTOR"], "optimizer: expected 'adamw' or 'directional', "),
        (
            ["--optimizer_type=AdamW", "--optimizer=directional"],
            "expected optimizer or optimizer_type, which both set optimizer, found two",
        ),
        (["--optimizer_args", "d0=1"], "optimizer_args: expected weight_decay, eps or"),
        (["--clip_skip=2"], "clip_skip is not there: "),
        (["--max_train_epochs=9"], "max_train_epochs is not there: a run has no epoch"),
        (["--in_json=a.json"], "in_json is not there: write caption_source json"),
        (["--caption_extension=.cap"], "caption_extension: expected .txt or .caption"),
        (["--learn_rate=0.1:10,0.01"], "learn_rate: expected one number, found '0.1:1"),
        (
            ["--clip_grad_mode=norm"],
            "clip_grad_mode: expected disabled, found 'norm'",
        ),
        (["--use_object_template=7x"], "use_object_template: expected true or false"),
        (
            ["--learning_rate_scheduler=REX"],
            "learning_rate_scheduler: expected constant, linear, cosine or cosine_with",
        ),
        (
            ["--token_string=dog"],
            "expected placeholder_token or token_string, which both set "
            "placeholder_token, found two values; remove one",
        ),
        (
            ["--training_width=512", "--training_height=768"],
            "expected training_width or training_height, which both set resolution, ",
        ),
        (["--token_strin=dog"], "unknown flag '--token_strin=dog'; did you mean --tok"),
    ],
)
def test_what_would_be_learned_otherwise_ends_the_run_in_one_line(flags, line):
    assert line_of(load, *flags).startswith(line)


def test_a_command_line_wins_over_a_file_whatever_the_names(tmp_path):
    file = tmp_path / "run.yaml"
    flags = [MODEL, "--train_data_dir=a", f"--config={file}"]
    file.write_text("token_string: <a>\nnum_vectors: 2\nrepeats: 9\n")
    config = load_config([*flags, "--placeholder_token=<b>", "--token_count=3"])
    assert (config.placeholder_token, config.num_vectors) == ("<b>", 3)
    file.write_text("placeholder_token: <a>\n")
    assert load_config([*flags, "--token_string=<b>"]).placeholder_token == "<b>"


def test_the_same_value_by_two_names_is_fine():
    assert load("--training_width=256", "--training_height=256").resolution == 256
    assert load("--token_string=<cat>") == load()


def test_the_settings_that_the_web_ui_leaves_are_a_configuration(tmp_path, caplog):
    file = tmp_path / "settings-2026-11-28-10-00-00.json"
    settings = {
        "datetime": "2026-11-28 10:00:00",
        "model_name": "v1-5-pruned-emaonly",
        "model_hash": "6ce0161689",
        "num_of_dataset_images": 5,
        "num_vectors_per_token": 2,
        "embedding_name": "my-cat",
        "learn_rate": "0.005",
        "batch_size": 2,
        "gradient_step": 1,
        "data_root": "pictures",
        "log_directory": "textual_inversion/2026-11-28/my-cat",
        "training_width": 512,
        "training_height": 512,
        "steps": 1000,
        "clip_grad_mode": "disabled",
        "clip_grad_value": "0.1",
        "latent_sampling_method": "once",
        "create_image_every": 500,
        "save_embedding_every": 250,
        "save_image_with_stored_embedding": True,
        "template_file": "templates/style_filewords.txt",
        "initial_step": 0,
    }
    file.write_text(json.dumps(settings, indent=4))
    config = load_config([MODEL, f"--config={file}"])
    expected = {
        "placeholder_token": "my-cat",
        "num_vectors": 2,
        "learning_rate": 0.005,
        "train_batch_size": 2,
        "train_data_dir": Path("pictures"),
        "output_dir": Path("textual_inversion/2026-11-28/my-cat"),
        "resolution": 512,
        "max_train_steps": 1000,
        "validation_steps": 500,
        "checkpointing_steps": 250,
        "max_grad_norm": None,
        "template_file": Path("templates/style_filewords.txt"),
    }
    assert {key: getattr(config, key) for key in expected} == expected
    told = {message.split()[0] for message in warnings_of(caplog)}
    assert told <= {*settings} - {"embedding_name", "learn_rate", "steps"}


def test_a_configuration_of_onetrainer_is_answered_by_where_its_names_are(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"__version": 10, "training_method": "EMBEDDING"}))
    message = line_of(load, f"--config={file}")
    assert "docs/coming-from.md" in message
    assert (DOCS / "coming-from.md").is_file()


def test_concepts_of_a_list_have_the_names_too(tmp_path, caplog):
    file = tmp_path / "list.yaml"
    entry = {"train_data_dir": "a", "init_word": "cat", "repeats": 100}
    words = {name: {**entry, "token_string": f"<{name}>"} for name in ("one", "two")}
    file.write_text(yaml.safe_dump({**words, "bad": {**entry, "clip_skip": 2}}))
    many = concepts.load([MODEL, f"--concepts={file}", "--skip_bad_concepts"])
    assert [each.config.placeholder_token for each in many.concepts] == [
        "<one>",
        "<two>",
    ]
    assert {each.config.initializer_token for each in many.concepts} == {"cat"}
    assert many.bad[0][1].startswith("clip_skip is not there: ")
    told = [line for line in warnings_of(caplog) if line.startswith("repeats ")]
    assert len(told) == 1


def test_no_secret_of_another_name_is_shown(caplog):
    assert load("--huggingface_token=secret").hub_token.get_secret_value() == "secret"
    load("--wandb_api_key=secret")
    assert "secret" not in caplog.text and "wandb_api_key is ignored" in caplog.text
    both = ["--huggingface_token=secret", "--hub_token=other"]
    assert "secret" not in line_of(load, *both)


def test_help_shows_our_names_alone(capsys):
    with pytest.raises(SystemExit):
        load_config(["--help"])
    shown = capsys.readouterr().out
    assert not [name for name in foreign_keys.NAMES if f"--{name} " in shown]


def test_the_page_has_every_name_that_is_not_left_out():
    page = (DOCS / "coming-from.md").read_text() + (DOCS / "data.md").read_text()
    for name, entry in foreign_keys.NAMES.items():
        if not isinstance(entry, Ignored) or name in diffusers_flags.NAMES:
            assert re.search(rf"[`\-( ]{name}[`\s]", page), name


@pytest.mark.parametrize("program", [kohya_flags, a1111_settings, onetrainer_keys])
def test_the_page_says_of_each_other_name_which_key_it_is(program):
    rows = [
        line
        for line in (DOCS / "coming-from.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    for name, entry in program.NAMES.items():
        with contextlib.suppress(ValueError):
            keys = entry.of("7") if isinstance(entry, Made) else {}
            for key in keys:
                row = [line for line in rows if f"`{name}`" in line]
                assert row and key in row[0], (name, key)
