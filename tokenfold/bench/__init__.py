"""`tokenfold bench`: a bundle's levels side by side, their speed and their memory."""
