//! TLS for gRPC: the server's certificate, and whose clients may connect at all.
//!
//! The files are read once, when the service starts: a certificate that was renewed is served from
//! the next start on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

/// Which files to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The certificate and its chain, the server's own first; PEM.
    pub cert_file: PathBuf,
    /// The certificate's private key; PEM.
    pub key_file: PathBuf,
    /// Certificates of the authorities that sign clients' certificates; PEM. With it only clients
    /// with such a certificate can connect (they need an API key all the same).
    pub client_ca_file: Option<PathBuf>,
}

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{option} {}: {source}", path.display())]
    Read {
        /// The option's flag.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate and the key do not fit together, or are none.
    #[error(
        "--grpc-tls-cert and --grpc-tls-key must be a PEM certificate and its private key, and \
         --grpc-client-ca PEM certificates"
    )]
    Invalid(#[source] tonic::transport::Error),
}

impl Config {
    /// Has `server` speak TLS. A client has `handshake_timeout` for its part of the handshake.
    pub(super) fn apply(
        &self,
        server: Server,
        handshake_timeout: Duration,
    ) -> Result<Server, Error> {
        let cert = read("--grpc-tls-cert", &self.cert_file)?;
        let key = read("--grpc-tls-key", &self.key_file)?;
        let mut tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(cert, key))
            .timeout(handshake_timeout);
        if let Some(file) = &self.client_ca_file {
            let authorities = read("--grpc-client-ca", file)?;
            tls = tls.client_ca_root(Certificate::from_pem(authorities));
        }
        server.tls_config(tls).map_err(Error::Invalid)
    }
}

fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { option, path: path.to_owned(), source })
}
