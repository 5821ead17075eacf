//! Every key of the configuration: its type, default and meaning, in one table.
//!
//! The table makes the structs, and it drives the file, the environment, `--set`, `arc config show` and
//! `arc config reference`, so that none of them can forget a key.

use super::value::{
    Codec, Directory, FilePath, Flag, GB, Int, KB, Kind, MB, Maybe, MaybeFile, OneOf, OriginList, Secret, Size, Span, Text, Word,
};
use crate::limits;
use std::time::Duration;

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Section of the file.
    pub section: &'static str,
    /// Name within the section.
    pub name: &'static str,
    /// One or more sentences.
    pub doc: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Its value is printed nowhere.
    pub secret: bool,
    /// It is a path of this machine.
    pub path_of_machine: bool,
    /// What a value must look like, for errors.
    pub expected: fn() -> String,
    /// Sets the value from text; false if the text is not as expected.
    pub set: fn(&mut Config, &str) -> bool,
    /// The value as text that `set` reads back.
    pub show: fn(&Config) -> String,
    /// The value for machines: sizes in bytes.
    pub json: fn(&Config) -> serde_json::Value,
}

impl Key {
    /// `section.key`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// `ARC_SECTION_KEY`.
    pub fn env(&self) -> String {
        format!("ARC_{}_{}", self.section, self.name).to_ascii_uppercase()
    }

    /// The value as it stands in a TOML file.
    pub fn toml(&self, config: &Config) -> String {
        let text = (self.show)(config);
        if self.kind.quoted() { serde_json::Value::from(text).to_string() } else { text }
    }
}

macro_rules! schema {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident: $Section:ident {
            $( $(#[doc = $doc:literal])+ $key:ident: $codec:ty = $default:expr; )+
        }
    )+) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, PartialEq, Debug)]
            pub struct $Section {
                $( $(#[doc = $doc])+ pub $key: <$codec as Codec>::Value, )+
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $( $key: $default, )+ }
                }
            }
        )+

        /// The effective configuration.
        #[derive(Clone, PartialEq, Debug, Default)]
        pub struct Config {
            $( pub $section: $Section, )+
            /// `ARC_LOG`: a filter such as `info,arc_ingest::wal=debug` that takes the place of `log.level`.
            pub log_filter: Option<String>,
            /// What the client of the store reads from the environment.
            pub cloud: super::cloud::CloudVariables,
        }

        /// Section names with their description.
        pub static SECTIONS: &[(&str, &str)] = &[ $( (stringify!($section), concat!($($section_doc),+)) ),+ ];

        /// Every key, in the order of the reference.
        pub static KEYS: &[Key] = &[ $($(
            Key {
                section: stringify!($section),
                name: stringify!($key),
                doc: concat!($($doc),+),
                kind: <$codec as Codec>::KIND,
                secret: <$codec as Codec>::SECRET,
                path_of_machine: <$codec as Codec>::PATH,
                expected: <$codec as Codec>::expected,
                set: |config, text| match <$codec as Codec>::parse(text) {
                    Some(v) => {
                        config.$section.$key = v;
                        true
                    }
                    None => false,
                },
                show: |config| <$codec as Codec>::show(&config.$section.$key),
                json: |config| <$codec as Codec>::json(&config.$section.$key),
            },
        )+)+ ];
    };
}

macro_rules! words {
    ($( $(#[doc = $doc:literal])+ $Name:ident { $( $(#[doc = $vdoc:literal])+ $Variant:ident = $word:literal, )+ } )+) => { $(
        $(#[doc = $doc])+
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $Name { $( $(#[doc = $vdoc])+ $Variant, )+ }

        impl Word for $Name {
            const ALL: &'static [Self] = &[ $( Self::$Variant ),+ ];
            fn word(self) -> &'static str {
                match self { $( Self::$Variant => $word ),+ }
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    )+ };
}

words! {
    /// `wal.io`: how bytes reach the log's files.
    WalIo {
        /// The way that the measurements in the documentation favour.
        Auto = "auto",
        /// Positioned writes.
        Pwrite = "pwrite",
        /// Copies into a shared map.
        Mmap = "mmap",
    }
    /// `wal.sync_mode`: the call that makes a group durable.
    SyncMode {
        /// Data, and only the metadata that is needed to read it.
        Fdatasync = "fdatasync",
        /// Data and all metadata.
        Fsync = "fsync",
        /// No sync at all: an acknowledgement means nothing. For tests only.
        UnsafeNone = "unsafe-none",
    }
    /// `wal.on_damage`: what a start does with damage below the durable floor.
    OnDamage {
        /// Set the bytes aside, report them, and go on.
        SetAside = "set-aside",
        /// Refuse to start.
        Refuse = "refuse",
    }
    /// `storage.backend`: where Parquet files go.
    Backend {
        /// A local directory.
        Local = "local",
        /// Amazon S3, or a store that speaks like it.
        S3 = "s3",
        /// Azure Blob Storage.
        Azure = "azure",
        /// Google Cloud Storage.
        Gcs = "gcs",
    }
    /// `storage.verify`: what is looked at after an object was put.
    Verify {
        /// That it is there with the right length.
        Head = "head",
        /// All of its bytes.
        Read = "read",
    }
    /// `storage.create_only`: whether a store is tried for create-only puts.
    CreateOnly {
        /// It is, and one that lets two writers of a name win is refused.
        Probe = "probe",
        /// What is seen is only logged.
        Trust = "trust",
    }
    /// `storage.layout`: the directories of a partition.
    Layout {
        /// `date=YYYY-MM-DD/hour=HH`.
        Hive = "hive",
        /// `YYYY/MM/DD/HH`.
        Arc = "arc",
    }
    /// `compaction.compression`: the codec of Parquet pages.
    Compression {
        /// zstd with `compaction.level`.
        Zstd = "zstd",
        /// Not compressed.
        None = "none",
        /// Snappy.
        Snappy = "snappy",
        /// gzip with `compaction.level`.
        Gzip = "gzip",
        /// LZ4 (raw).
        Lz4 = "lz4",
    }
    /// `compaction.encoding`: which encodings of values Parquet files may have.
    Encoding {
        /// Those that all readers in use read.
        Compatible = "compatible",
        /// Newer ones too, where they take less room.
        Compact = "compact",
    }
    /// `ingest.nested`: what becomes of arrays and maps in MessagePack values.
    Nested {
        /// Stored as JSON text in a string column.
        Json = "json",
        /// The request is refused with 400.
        Reject = "reject",
    }
    /// `ingest.large_unsigned`: what becomes of unsigned integers above the largest int64 in columns that are not float64.
    LargeUnsigned {
        /// The request is refused with 400, or the line of line protocol.
        Refuse = "refuse",
        /// Stored as the largest int64, 9223372036854775807, and counted.
        Saturate = "saturate",
    }
    /// `log.level`.
    LogLevel {
        /// Only errors.
        Error = "error",
        /// Warnings too.
        Warn = "warn",
        /// What happens to the process as a whole.
        Info = "info",
        /// What happens to requests and plans.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
    /// `log.format`.
    LogFormat {
        /// Text on a terminal, JSON otherwise.
        Auto = "auto",
        /// Lines for people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// Sizes above this are surely a mistake of unit, and sums of a few of them cannot overflow.
const TOP: u64 = 1 << 50;
const PAYLOAD: u64 = limits::MAX_PAYLOAD as u64;

schema! {
    /// The HTTP listener and its limits.
    server: ServerConfig {
        /// Address or host name to listen on. Anything but loopback also needs auth.enabled or server.insecure.
        host: Text = "127.0.0.1".into();
        /// Port to listen on; 0 lets the system choose.
        port: Int<u16, 0, 65535> = 8000;
        /// Largest request body as sent, before inflating; a larger one gets 413.
        max_payload_size: Size<1, PAYLOAD> = 64 * MB;
        /// Time a client has to send the head of a request.
        header_timeout: Span = Duration::from_secs(10);
        /// Time without a byte of a body after which the connection is closed.
        read_timeout: Span = Duration::from_secs(30);
        /// Time a kept-alive connection may wait for its next request.
        idle_timeout: Span = Duration::from_secs(120);
        /// Time a shutdown waits for requests in flight.
        shutdown_timeout: Span = Duration::from_secs(30);
        /// Connections open at the same time.
        max_connections: Int<usize, 1, 1_000_000> = 4096;
        /// Origins whose pages may write from a browser, such as "https://a.example, http://localhost:3000", or "*" for any; empty for none.
        cors_origins: OriginList = "".into();
        /// Allow a server.host that others can reach, although there is no authentication.
        insecure: Flag = false;
        /// Speak TLS (1.2 or 1.3) and nothing else on the port.
        tls_enabled: Flag = false;
        /// Certificate chain in PEM, the server's own first; read again on SIGHUP.
        tls_cert_file: MaybeFile = "".into();
        /// Private key of the certificate in PEM; read again on SIGHUP.
        tls_key_file: MaybeFile = "".into();
    }
    /// Who may do what.
    auth: AuthConfig {
        /// Ask for a token on every route but /health, /ready, /metrics, /ping and the two statements of /query.
        enabled: Flag = false;
        /// File of the tokens, mode 0600; made by the first start, which prints an admin token, or by `arc token create`.
        token_file: FilePath = "./data/auth/tokens.json".into();
    }
    /// What a request may hold.
    ingest: IngestConfig {
        /// Largest body after inflating; a larger one gets 413.
        max_inflated_size: Size<1, PAYLOAD> = 128 * MB;
        /// Largest normalised batch, that is one record of the log; a larger one gets 413.
        max_record_size: Size<1024, PAYLOAD> = 128 * MB;
        /// Bytes of all requests being worked on; above it new ones wait, then get 503.
        max_in_flight: Size<1, TOP> = 256 * MB;
        /// Columns of one table.
        max_columns: Int<usize, 1, { limits::MAX_COLUMNS as u64 }> = 1024;
        /// Tables of the server, all databases together.
        max_tables: Int<usize, 1, 10_000_000> = 10_000;
        /// Columns of all tables together; a request that would make more gets 400. What the log holds already stays.
        max_total_columns: Int<usize, 1, 100_000_000> = 200_000;
        /// Bytes that the names of all tables and columns take, each as often as it is used; a request that would add more gets 400.
        max_name_bytes: Size<1024, TOP> = 16 * MB;
        /// Tables times hours that one request may touch; above it 413.
        max_partitions: Int<usize, 1, 1_000_000> = 1024;
        /// Arrays and maps as values: "json" stores them as text, "reject" answers 400.
        nested: OneOf<Nested> = Nested::Json;
        /// Unsigned integers above 9223372036854775807: "refuse" answers 400, "saturate" stores that number in their place and counts them.
        large_unsigned: OneOf<LargeUnsigned> = LargeUnsigned::Refuse;
        /// How long an Idempotency-Key is remembered, in running time.
        idempotency_window: Span = Duration::from_secs(3600);
        /// How many keys are remembered; the oldest go first.
        idempotency_max_keys: Int<usize, 1, 100_000_000> = 1_000_000;
    }
    /// The write-ahead log.
    wal: WalConfig {
        /// Directory of the log; created if missing.
        directory: Directory = "./data/wal".into();
        /// Do not start where wal.directory holds no log: for a node whose log must be there, so that a disk that is not mounted is no new
        /// log. Leave it false for the first start.
        require_existing: Flag = false;
        /// Data bytes of a segment, rounded up to a multiple of 4KB.
        segment_size: Size<{ limits::MIN_SEGMENT_DATA as u64 }, { limits::MAX_SEGMENT_DATA as u64 }> = 64 * MB;
        /// Bytes the log may take on disk, pool included; writes are delayed from 80 % on and refused at 100 %.
        max_size: Size<{ 4 * KB }, TOP> = 16 * GB;
        /// Bytes kept back so that a full disk can still be drained; more when twice the manifest is more. 0: none.
        reserve: Size<0, TOP> = 64 * MB;
        /// Released segments kept for reuse.
        pool: Int<usize, 0, 4096> = 4;
        /// How bytes reach the disk: "auto", "pwrite" or "mmap".
        io: OneOf<WalIo> = WalIo::Auto;
        /// Call that makes a group durable: "fdatasync", "fsync", or "unsafe-none" (tests only: an acknowledged write may be lost).
        sync_mode: OneOf<SyncMode> = SyncMode::Fdatasync;
        /// Damage found at start: "set-aside" keeps the bytes, reports and goes on, "refuse" does not start.
        on_damage: OneOf<OnDamage> = OnDamage::SetAside;
        /// Time after a failed sync until the process exits.
        poison_exit_after: Span = Duration::from_secs(30);
        /// Time a request waits for its place in the log before it gets 503.
        queue_timeout: Span = Duration::from_secs(2);
        /// Start although the directory is on tmpfs or ramfs, whose files are gone when the machine stops.
        allow_volatile: Flag = false;
        /// Quiet time after which the last group gets a synced mark.
        mark_delay: Span = Duration::from_millis(50);
    }
    /// Where Parquet files go.
    storage: StorageConfig {
        /// Kind of store: "local", "s3", "azure" or "gcs".
        backend: OneOf<Backend> = Backend::Local;
        /// Directory of the lake for backend = "local"; created if missing.
        local_path: Directory = "./data/lake".into();
        /// Start although the lake does not hold the newest plan that this log has shipped; for a lake that was moved or emptied on purpose.
        accept_new_lake: Flag = false;
        /// Partition directories: "hive" is date=YYYY-MM-DD/hour=HH, "arc" is YYYY/MM/DD/HH.
        layout: OneOf<Layout> = Layout::Hive;
        /// Bucket for backend = "s3".
        s3_bucket: Maybe = String::new();
        /// Region of the bucket; empty takes AWS_REGION, else us-east-1.
        s3_region: Maybe = String::new();
        /// Host, host:port or URL of a store that speaks S3; empty is Amazon's.
        s3_endpoint: Maybe = String::new();
        /// What stands before every key, such as "lake/eu".
        s3_prefix: Maybe = String::new();
        /// Access key; empty takes the credentials of the environment or of the machine, which are renewed before they expire.
        s3_access_key: Maybe = String::new();
        /// Secret key that goes with s3_access_key.
        s3_secret_key: Secret = Secret::default();
        /// https, where s3_endpoint says neither http:// nor https://.
        s3_use_ssl: Flag = true;
        /// The bucket is part of the path instead of the host name; most stores other than Amazon's want it.
        s3_path_style: Flag = false;
        /// Bodies carry a SHA-256 that the store compares; false for a store that does not know it.
        s3_checksums: Flag = true;
        /// Storage account for backend = "azure".
        azure_account: Maybe = String::new();
        /// Container for backend = "azure".
        azure_container: Maybe = String::new();
        /// What stands before every name.
        azure_prefix: Maybe = String::new();
        /// Key of the account; without it and without azure_sas_token, managed or workload identity or the environment.
        azure_access_key: Secret = Secret::default();
        /// Shared access signature in place of a key.
        azure_sas_token: Secret = Secret::default();
        /// URL of the blob service; empty is ACCOUNT.blob.core.windows.net by https.
        azure_endpoint: Maybe = String::new();
        /// The endpoint is an emulator: the account is part of the path.
        azure_use_emulator: Flag = false;
        /// Bucket for backend = "gcs".
        gcs_bucket: Maybe = String::new();
        /// What stands before every name.
        gcs_prefix: Maybe = String::new();
        /// Key file of a service account; empty takes the credentials of the environment or of the machine.
        gcs_service_account_file: MaybeFile = "".into();
        /// URL of the XML API; empty is Google's. Requests to a plain http:// one carry no credentials.
        gcs_endpoint: Maybe = String::new();
        /// Time for one request to an object store; the completion of a large upload gets four times as much.
        timeout: Span = Duration::from_secs(30);
        /// Objects up to this size are put in one piece, larger ones in pieces of it; 10,000 pieces are the most.
        part_size: Size<{ 5 * MB }, GB> = 8 * MB;
        /// Pieces of one object on their way at one time.
        parts_in_flight: Int<usize, 1, 64> = 2;
        /// Objects put at one time.
        puts: Int<usize, 1, 256> = 8;
        /// After each put: "head" looks whether the object is there with its length, "read" reads it back and compares.
        verify: OneOf<Verify> = Verify::Head;
        /// "probe" refuses an object store that lets two of several racing creates of one name win; "trust" uses it all the same, which
        /// is safe only while a single process writes to it.
        create_only: OneOf<CreateOnly> = CreateOnly::Probe;
    }
    /// From the log to Parquet.
    compaction: CompactionConfig {
        /// Bytes of unshipped log that start a plan.
        trigger_size: Size<{ 4 * KB }, TOP> = 512 * MB;
        /// Age of the oldest unshipped row that starts a plan.
        max_delay: Span = Duration::from_secs(60);
        /// Rows of a Parquet row group.
        row_group_rows: Int<usize, 1, { limits::MAX_ROWS_PER_TABLE as u64 }> = 1_048_576;
        /// Compression of Parquet pages: "zstd", "none", "snappy", "gzip" or "lz4".
        compression: OneOf<Compression> = Compression::Zstd;
        /// Level of zstd (1 to 22) or gzip (1 to 9); not used by other codecs.
        level: Int<i32, 1, 22> = 1;
        /// Encodings of values: "compatible" ones, or "compact" for smaller columns of doubles that older readers refuse (docs/reading.md).
        encoding: OneOf<Encoding> = Encoding::Compatible;
        /// Keep the log and write no Parquet; writes get 503 once the log is full.
        paused: Flag = false;
        /// Files of one plan; a plan closes when it has them.
        max_outputs: Int<usize, 1, 1_000_000> = 4096;
        /// Rows of one plan; a plan closes when it has them.
        max_rows: Int<u64, 1, { 1 << 40 }> = 1 << 30;
        /// Threads that build Parquet files; 0 means one a core.
        workers: Int<usize, 0, 1024> = 0;
        /// Memory that all builds of Parquet files share, at least 4 x ingest.max_record_size; a row group takes an eighth of it.
        memory: Size<{ 16 * MB }, TOP> = 512 * MB;
    }
    /// What the process says on stderr. The variable ARC_LOG takes a filter such as "info,arc_ingest::wal=debug" instead of a level.
    log: LogConfig {
        /// Least severe level that is shown: "error", "warn", "info", "debug" or "trace".
        level: OneOf<LogLevel> = LogLevel::Info;
        /// "text", "json", or "auto": text on a terminal, JSON otherwise.
        format: OneOf<LogFormat> = LogFormat::Auto;
    }
}

/// Index into [`KEYS`] of `section.key`.
pub fn find(path: &str) -> Option<usize> {
    let (section, name) = path.split_once('.')?;
    KEYS.iter().position(|k| k.section == section && k.name == name)
}

/// The text of `arc.toml`: every key with its default, commented out.
pub fn reference() -> String {
    use std::fmt::Write as _;
    let defaults = Config::default();
    let mut out = String::from(
        "# Configuration of arc: every key with its default, commented out. Made by `arc config reference`.\n\
         #\n\
         # Read from the path given with --config, else ./arc.toml, else /etc/arc/arc.toml. A key can also be set by the\n\
         # variable ARC_SECTION_KEY (ARC_WAL_MAX_SIZE=4GB), which goes before the file, or with --set section.key=value,\n\
         # which goes before both. Sizes: integer bytes, or B KB MB GB KiB MiB GiB, all 1024-based. Durations: integer\n\
         # seconds, or ms s m h. Relative paths count from the working directory.\n",
    );
    for (section, doc) in SECTIONS {
        let _ = write!(out, "\n#{doc}\n[{section}]\n");
        for key in KEYS.iter().filter(|k| k.section == *section) {
            let _ = write!(out, "\n#{}\n# {} = {}\n", key.doc, key.name, key.toml(&defaults));
        }
    }
    out
}
