"""Models to and from the format of Hugging Face's ``transformers``: config.json, safetensors, tokenizer.json.

``families`` says which class computes what a spec describes, ``config`` and ``rules`` translate sizes and weights, ``convert``
puts both together in memory; ``export`` and ``load`` do it with files. ``transformers`` itself is needed by the tests alone.
"""
