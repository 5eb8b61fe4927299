"""diffusion_core: the small package that the book *Learning Diffusion Models, Step by Step*
explains and tests.

It loads no room by itself: `from diffusion_core.ddpm import q_sample` loads what that
needs. EQUATIONS says which function is which equation, under the keys of the book's tags.
"""

__version__ = "0.1.0"

EQUATIONS = {
    "DDPM sec. 2": "schedules.NoiseSchedule.from_betas",
    "DDPM sec. 4": "schedules.linear_betas",
    "iDDPM 17": "schedules.cosine_betas",
    "DDPM 2": "schedules.NoiseSchedule.beta_at",
    "VDM sec. 3.1": "schedules.NoiseSchedule.snr",
    "EDM 5": "schedules.karras_times",
    "DDPM 4": "ddpm.q_sample",
    "DDPM 6": "ddpm.q_posterior",
    "DDPM 7": "ddpm.q_posterior",
    "DDPM 11": "ddpm.ddpm_step",
    "DDPM 14": "ddpm.simple_loss",
    "DDPM 15": "prediction.predict_x0",
    "Distillation sec. 4": "prediction.predict_v",
    "DDPM alg. 2": "ddpm.ddpm_sample",
    "DDPM 5": "likelihood.vlb_terms",
    "DDPM 13": "likelihood.decoder_nll",
    "DDIM 12": "ddim.ddim_step",
    "DDIM 13": "ddim.ddim_invert_step",
    "DDIM 14": "ddim.ddim_invert",
    "DDIM 16": "ddim.ddim_sigma",
    "DDIM sec. 5": "ddim.ddim_sigma_hat",
    "ADM alg. 2": "guidance.classifier_guidance",
    "CFG 6": "guidance.classifier_free_guidance",
    "CFG alg. 1": "guidance.drop_labels",
    "ZeroSNR sec. 3.4": "guidance.rescale_guidance",
    "VAE sec. 2.4": "networks.autoencoder.Posterior.draw",
    "VAE app. B": "networks.autoencoder.Posterior.kl",
    "LDM app. G": "networks.autoencoder.latent_scale",
    "SDE sec. 3.3": "exact.GaussianMixture.eps_model",
    "SDE 5": "sde.SDE.drift",
    "SDE 6": "sde.reverse_drift",
    "SDE 9": "sde.VESDE",
    "SDE 11": "sde.VPSDE",
    "SDE 12": "sde.SubVPSDE",
    "SDE 13": "sde.probability_flow_drift",
    "SDE 29": "sde.SDE.marginal",
    "SDE 39": "sde.log_likelihood",
    "SDE alg. 1": "sde.predictor_corrector_sample",
    "EDM alg. 1": "sde.heun_step",
    "P2 8": "training.batches.p2_weights",
    "LoRA 3": "networks.lora.LoRALinear",
    "Attention 1": "networks.unet.AttentionBlock",
    "Attention sec. 3.5": "networks.unet.timestep_embedding",
    "FID 6": "evaluation.metrics.frechet_distance",
    "KID sec. 4": "evaluation.metrics.kernel_distance",
}
