from kdexport.bundle import Bundle
from kdexport.runtime.latency import measure_once, prompt_of
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text


def test_every_token_asked_for_is_timed(llama_bundle: Bundle) -> None:
    codec = load_text(llama_bundle)
    found = measure_once(open_session(llama_bundle, n_threads=1), codec, prompt_of(codec, 40), 12)
    assert len(found.itl_ms) == 11
    assert found.ttft_ms > 0 and min(found.itl_ms) > 0
    assert found.decode_tok_s == 1000 * 11 / sum(found.itl_ms)


def test_prompts_have_the_length_asked_for(llama_bundle: Bundle) -> None:
    codec = load_text(llama_bundle)
    for n_tokens in (1, 17, 128):
        assert len(codec.encode(prompt_of(codec, n_tokens))) == n_tokens
