"""The packaged backbones, as they come from the registry."""

import pytest

from llm_influence.config.run import RunConfig
from llm_influence.modeling.model import InfluenceModel


@pytest.mark.e2e
def test_the_packaged_decoder_predicts_the_same_after_save_and_load(tmp_path, log):
    config = RunConfig.model_validate(
        {
            "model": {"backbone": "smollm2-135m", "layers": 2},
            "rendering": {"template": "full", "max_events": 6},
        }
    )
    model = InfluenceModel.build(config, log).eval()
    assert model.backbone.kind == "decoder"
    model.save_pretrained(tmp_path)
    again = InfluenceModel.from_pretrained(tmp_path)
    assert again.recommend(log.at(0), 5) == model.recommend(log.at(0), 5)
