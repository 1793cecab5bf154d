"""Configuration: what is read is what is written, and a mistake is named."""

import dataclasses
import json

import pytest
import yaml

from captioner.config import (
    AttentionConfig,
    Config,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    SourceConfig,
    from_dict,
    load_config,
    to_dict,
)
from captioner.errors import ConfigError

FULL = Config(
    out="runs/été",
    seed=7,
    init="start.safetensors",
    model=ModelConfig(
        encoder=EncoderConfig(name="timm/resnet10t", strides=(8, 32), grid=14, width=None),
        attention=AttentionConfig(kind="multi_head", normalizer="entmax15", see_word=True),
        decoder=DecoderConfig(gate="off", dropout=0.25),
    ),
    data=DataConfig(
        train=(
            SourceConfig(captions="a.json"),
            SourceConfig(captions="b.jsonl", images="photos", split="train"),
        ),
        cache=None,
        limit=10,
    ),
)


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("config", [Config(), FULL], ids=["default", "full"])
def test_round_trip(config, tmp_path):
    plain = to_dict(config)
    assert from_dict(Config, plain) == config
    assert from_dict(Config, json.loads(json.dumps(plain))) == config
    assert load_config(write(tmp_path, yaml.safe_dump(plain, allow_unicode=True))) == config
    assert load_config(write(tmp_path, yaml.dump(plain))) == config


def test_an_empty_recipe_is_the_default(tmp_path):
    assert load_config(write(tmp_path, "# nothing\n")) == Config()


def test_overrides(tmp_path):
    path = write(tmp_path, "seed: 1\nmodel: {attention: {size: 64}}\n")
    config = load_config(
        path,
        [
            "seed=5",
            "optim.learning_rate=1e-3",
            "optim.weight_decay=0",
            "model.attention.kind=dot",
            "model.encoder.strides=[8, 32]",
            "model.encoder.width=null",
            "data.mirror=false",
            "data.train=[{captions: x=y.json, split: train}]",
            "out=a=b",
        ],
    )
    assert config.seed == 5
    assert config.optim.learning_rate == 1e-3
    assert config.optim.weight_decay == 0.0
    assert isinstance(config.optim.weight_decay, float)
    assert config.model.attention == AttentionConfig(kind="dot", size=64)  # the rest is kept
    assert config.model.encoder.strides == (8, 32)
    assert config.model.encoder.width is None
    assert config.data.mirror is False
    assert config.data.train == (SourceConfig(captions="x=y.json", split="train"),)
    assert config.out == "a=b"
    assert load_config(path).seed == 1
    empty = write(tmp_path, "data:\n")
    assert load_config(empty, ["data.limit=3"]).data == DataConfig(limit=3)


@pytest.mark.parametrize(
    "text",
    [
        "runs/exp #3",
        "001",
        "yes",
        "2024-01-01",
        "1e3",
        "null",
        " x ",
        "[a",
        "a: b",
        "'a'",
        "*x",
        "#",
    ],
)
def test_text_stays_text(tmp_path, text):
    path = write(tmp_path, "seed: 1\n")
    assert load_config(path, [f"out={text}"]).out == text
    assert load_config(path, [f"data.root={text}"]).data.root == text
    if text != "null":
        assert load_config(path, [f"data.cache={text}"]).data.cache == text


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("out=", "out is empty"),
        ("data.root= ", "data.root is empty"),
        ("data.cache=None", "write null for no value, or ./None"),
        ("data.limit=none", "write null for no value"),
        ("optim.epochs=12:30", "optim.epochs must be int"),
        ("optim.epochs=1e1", "optim.epochs must be int"),
        ("optim.learning_rate=inf", "optim.learning_rate must be float"),
        ("optim.clip=nan", "optim.clip must be float"),
        ("loss.coverage_target=.nan", "loss.coverage_target must be float"),
    ],
)
def test_values_that_would_mean_something_else(tmp_path, override, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(write(tmp_path, "seed: 1\n"), [override])


def test_numbers_are_decimal(tmp_path):
    assert load_config(write(tmp_path, "{}"), ["data.limit=010"]).data.limit == 10


def test_a_key_that_is_there_twice_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"line 4: 'data' is there twice"):
        load_config(write(tmp_path, "data:\n  limit: 3\nseed: 1\ndata:\n  workers: 0\n"))
    with pytest.raises(ConfigError, match=r"line 3: 'limit' is there twice"):
        load_config(write(tmp_path, "data:\n  limit: 3\n  limit: 4\n"))


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_an_optional_key_can_be_unset(tmp_path, text):
    config = load_config(write(tmp_path, "init: x\n"), [f"init={text}", f"data.cache={text}"])
    assert (config.init, config.data.cache) == (None, None)


def test_home_and_variables_are_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("DATA", "/data/$HOME")
    data = "{root: '${HOME}/r', train: {captions: ~/a, images: $DATA, more_captions: ~/b}}"
    path = write(tmp_path, f"out: ~/run\ninit: $HOME/m\ndata: {data}")
    config = load_config(path, ["data.cache=~/c", "data.embeddings=$HOME/e"])
    assert (config.out, config.init) == ("/home/ann/run", "/home/ann/m")
    assert config.data.root == "/home/ann/r"
    assert (config.data.cache, config.data.embeddings) == ("/home/ann/c", "/home/ann/e")
    source = SourceConfig(
        captions="/home/ann/a", images="/data/$HOME", more_captions=("/home/ann/b",)
    )
    assert config.data.train == (source,)
    assert load_config(path, ["out=a~/$"]).out == "a~/$"


def test_one_value_stands_for_a_list_of_one(tmp_path):
    config = load_config(
        write(tmp_path, "model: {encoder: {strides: 16}}\ndata: {val: {captions: a.json}}")
    )
    assert config.model.encoder.strides == (16,)
    assert config.data.val == (SourceConfig(captions="a.json"),)


@pytest.mark.parametrize("text", ["off", "'off'", "false"])
def test_yaml_reads_off_as_false_but_we_know_better(tmp_path, text):
    config = load_config(write(tmp_path, f"model: {{decoder: {{gate: {text}}}}}"))
    assert config.model.decoder.gate == "off"
    assert load_config(write(tmp_path, ""), [f"model.decoder.gate={text}"]) == dataclasses.replace(
        Config(), model=ModelConfig(decoder=DecoderConfig(gate="off"))
    )


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'0.001'"])
def test_floats_as_people_write_them(tmp_path, text):
    """YAML 1.1 takes 1e-3 for a string."""
    config = load_config(write(tmp_path, f"optim: {{learning_rate: {text}}}"))
    assert config.optim.learning_rate == 0.001


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rat=1", r"'optim\.learning_rat'.*did you mean 'learning_rate'"),
        ("modle.attention.kind=dot", r"'modle'.*did you mean 'model'"),
        ("model.attention.zzz=1", r"'model\.attention\.zzz'; known keys: kind, mode, size, heads"),
        ("=1", "unknown key ''"),
        ("model.attention.kind=dotted", r"model\.attention\.kind must be one of additive, dot"),
        ("model.attention.normalizer=false", r"normalizer must be one of softmax.*got False"),
        ("model.encoder.width=wide", r"model\.encoder\.width must be int; got 'wide'"),
        ("model.encoder.width=1.5", r"must be int; got 1\.5"),
        ("model.encoder.pretrained=1", r"model\.encoder\.pretrained must be bool; got 1"),
        ("model.encoder.strides=[16, x]", r"model\.encoder\.strides\[1\] must be int; got 'x'"),
        ("seed=true", "seed must be int; got True"),
        ("seed=null", "seed must be int; got None"),
        ("seed=3 #2", "seed must be int; got '3 #2'"),
        ("model.encoder.strides=[8] #2", "strides"),
        ("data.mirror=false #2", "data.mirror must be bool"),
        ("data.cache=$NO_SUCH_VARIABLE/x", r"data\.cache=.*: the environment variable \$NO_SUCH"),
        ("out=~nobody-here/x", r"out=.*no home directory; write \./~nobody-here/x"),
        ("optim.clip=high", r"optim\.clip must be float; got 'high'"),
        ("optim.clip=true", r"optim\.clip must be float; got True"),
        ("optim=3", "optim must be a section of keys, got 3"),
        ("optim=null", "optim must be a section"),
        ("seed.deeper=3", "seed"),
        ("data.train=[{images: photos}]", r"data\.train\[0\].*captions"),
        ("data.train=[a.json]", r"data\.train\[0\] must be a section"),
        ("seed", "must look like optim"),
        ("seed=[1", "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(write(tmp_path, "seed: 1\n"), [override])
    assert len(str(raised.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [1", "recipe.yaml is not valid YAML"),
        (b"- 1\n- 2\n", "recipe.yaml must hold keys and values, not list"),
        (b"just words", "recipe.yaml must hold keys and values, not str"),
        (b"seed: \xff\xfe", "recipe.yaml"),
        (b"\x00\x01\x02", "recipe.yaml"),
        (b"1: 2\n", "unknown key '1'"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(path)
    assert len(str(raised.value).splitlines()) == 1


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_config(tmp_path)


def test_configurations_are_frozen_and_take_keywords_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 3
    with pytest.raises(TypeError):
        AttentionConfig("dot")


@pytest.mark.parametrize(
    "override",
    [
        "data.batch_size=0",
        "data.workers=-1",
        "model.decoder.dropout=1.5",
        "loss.label_smoothing=2",
        "optim.epochs=0",
        "optim.learning_rate=-1",
        "optim.ema=2",
        "validation.beam=0",
        "validation.every=0",
        "seed=-1",
        "seed=99999999999999999999",
    ],
)
def test_a_value_out_of_range_names_its_limits(tmp_path, override):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("out: x\n")
    with pytest.raises(ConfigError, match=rf"{override.split('=')[0]} must be (at least|from) \d"):
        load_config(recipe, [override])
