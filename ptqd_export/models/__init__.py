"""Model families: one file each, all adapted to the interface of `ptqd_export.models.base.Adapter`."""
