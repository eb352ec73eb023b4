"""The 4M transformer and its tokenizers, and the strict loading of their checkpoints."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "attention": "KVCache Mask check_kernel is_packed set_attention",
    "checkpoint": "check_files load_model load_strictly load_tokenizer tokenizer_config unused_names",
    "graphs": "Graphs",
    "layers": "compile_blocks",
    "memory": "free_memory is_out_of_memory memory_error release_memory total_memory",
    "model": "Context DecoderCache Embedded FourM FourMConfig",
    "precision": "arithmetic check_compiler choose_dtype torch_dtype",
    "state": """Batch S1_ID S2_ID Slot full_embedding full_grid full_pixels
        full_sequence partly_given pending stack_batches to_device typed_text""",
    "tokenizers": "AnyTokenizer build_tokenizer",
    "tokenizers.config": "DiVAEConfig VQConfig read_config",
    "tokenizers.diffusion": "DiVAE check_steps cumulative_alphas",
    "tokenizers.unet": "PatchedUNet UNetShape",
    "tokenizers.vq": "IMAGENET VQTokenizer",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
