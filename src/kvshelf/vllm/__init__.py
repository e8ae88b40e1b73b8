"""The vLLM plugin: the only package of kvshelf that imports vLLM or torch.

Nothing is imported here, so that the plugin's entry point stays cheap. Data flows one way:

    connector -> spec -> manager (scheduler process) / worker (worker processes) -> kvshelf.shelf
"""
