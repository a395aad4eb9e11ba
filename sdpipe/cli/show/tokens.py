"""`sdpipe show tokens`: the words of a prompt as tokens."""

from sdpipe.cli import console, options
from sdpipe.cli.groups import embeddings
from sdpipe.cli.show.options import Json, Out, Prompt
from sdpipe.loading.locate import chosen_model
from sdpipe.loading.textual_inversion import Embedding
from sdpipe.prompt.habits import warn_habits, warn_unused_words
from sdpipe.settings import Settings
from sdpipe.show.output import Output


def tokens(
    prompt: Prompt,
    model: options.Model = None,
    embedding: options.EmbeddingFiles = None,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the tokens that the text encoder reads from a prompt."""
    Settings(prompt=options.text("the prompt", prompt))
    output = Output("tokens", prompt, out=out, as_json=as_json)
    inversions = [Embedding.read(given) for given in embeddings(embedding)]
    from sdpipe.loading.parts import load_tokenizer
    from sdpipe.loading.vocabulary import find_vocabulary
    from sdpipe.show.tokens import tokens_data, tokens_figure

    tokenizer = load_tokenizer(model, inversions)
    name = model or chosen_model()
    if name is not None and (vocabulary := find_vocabulary(name)) is not None:
        prompt = vocabulary.read(prompt)
    warn_habits([prompt], tokenizer.added_tokens_encoder)
    warn_unused_words([inversion.word for inversion in inversions], [prompt])
    data = tokens_data(tokenizer, prompt)
    console.print_result(output.finish(data.to_dict(), lambda: tokens_figure(data)))
